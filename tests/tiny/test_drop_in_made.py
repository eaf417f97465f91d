"""How a `DSparkLlama` is made: its drafter, what it says, refuses, keeps and downloads."""

import json
import pickle

import llama_cpp
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel

from dspark_gguf import Speculation
from dspark_gguf.draft import Cascade, ModelDrafter, NoDrafter
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import UsageError
from dspark_gguf.learned import forget_all, learned_dir
from dspark_gguf.sampling import margin, top_probability
from tests.children import run_python
from tests.fake_hub import serving
from tests.tiny.test_drop_in_answers import ALWAYS, DRAFT, EXACT, said


def test_drafts_are_used(tiny_files):
    """Fewer passes than tokens."""
    llama = DSparkLlama(
        str(tiny_files.target), draft_model=tiny_files.draft, draft_options=DRAFT,
        speculation=ALWAYS, **EXACT,
    )  # fmt: skip
    passes = []
    decode = llama._cache.decode
    llama._cache.decode = lambda *step: passes.append(step[1]) or decode(*step)
    assert len(said(llama, 60, temp=0.0)) == 60
    assert len(passes) < 50
    assert max(passes) == 6
    assert llama.scores.shape[0] < 512 or not llama._logits_all
    llama.close()


class Guesses(LlamaDraftModel):
    def __call__(self, input_ids, /, **_):
        return input_ids[:0]


REFUSED = {
    "acceptance": ({"speculation": Speculation(acceptance="typical")}, "Use match"),
    "rejection": ({"speculation": Speculation(acceptance="rejection")}, "llama.cpp's own draw"),
    "a number": ({"draft_model": 3}, "type int. Give a path, a Llama, a Drafter or None"),
    "options without a path": ({"draft_options": DRAFT}, "draft_options needs a draft_model"),
    "no model": ({"speculation": Speculation(drafter="model")}, "drafter model"),
    "a useless model": (
        {"draft_model": "x.gguf", "speculation": Speculation(drafter="lookup")},
        "drafter lookup does not go with .* type str",
    ),
    "another drafter": (
        {"draft_model": NoDrafter(), "speculation": Speculation(drafter="model")},
        "drafter model does not go with .* NoDrafter",
    ),
    "a useless store": (
        {"draft_model": NoDrafter(), "speculation": Speculation(lookup_store="x.lookup")},
        "a lookup_store does not go with .* NoDrafter",
    ),
    "a dict": ({"speculation": {"mode": "on"}}, r"Write Speculation\(...\)"),
    "text": ({"speculation": "on"}, "'on' is given instead of Speculation"),
    "draft options": ({"draft": "draft.gguf", "draft_options": {"n_ctx": 128}}, "n_ctx.* is given"),
    "two drafts": ({"draft": "none", "draft_model": "draft.gguf"}, "Give one of the two"),
    "extra buffers": ({"extra_buffers": "zork", "draft": "none"}, "Give auto, on or off"),
    "a draft of llama-cpp-python's": ({"draft": Guesses()}, "Guesses. Give the path"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(tiny_files, what):
    """What cannot be honoured is refused by name."""
    options, message = REFUSED[what]
    with pytest.raises(UsageError, match=message):
        DSparkLlama(str(tiny_files.target), **options, **EXACT)


def test_a_lora_that_is_none(tiny_files, tmp_path):
    """No such file, and another kind of file: with it, `Llama` ends the process in a pass."""
    for file in (tmp_path / "none.gguf", tiny_files.target):
        options = {"lora_path": str(file), "draft": "none", "speculation": ALWAYS}
        with pytest.raises(RuntimeError, match="LoRA"):
            DSparkLlama(str(tiny_files.target), **options, **EXACT)


def test_tokens_that_are_none(tiny_files):
    """Numbers outside the vocabulary, and what is no number: as `Llama`, or as it should."""
    llama = DSparkLlama(str(tiny_files.target), draft="none", speculation=ALWAYS, **EXACT)
    for wrong, error in (([1, 10**6], RuntimeError), ([1, -5], RuntimeError), ([1.5], TypeError)):
        with pytest.raises(error):
            next(llama.generate(wrong))
    with pytest.raises(TypeError):
        llama.create_completion(["a prompt", "another one"])
    for special in (False, True):
        for wrong in ([5, -1], [llama.n_vocab()]):
            with pytest.raises(UsageError, match="is no token of this model"):
                llama.detokenize(wrong, special=special)
    assert llama.detokenize([llama.n_vocab() - 1]) is not None
    llama.close()


def test_each_setting_has_its_drafter(tiny_files, tmp_path):
    """The drafter and its store; a bound of probabilities goes with scores that are such."""
    from dspark_gguf.draft import Store

    def made(**settings):
        llama = DSparkLlama(
            str(tiny_files.target), speculation=Speculation(learn=False, **settings),
            draft_model=None if "lookup_store" in settings else str(tiny_files.draft), **EXACT,
        )  # fmt: skip
        drafter = llama.drafter
        llama.close()
        return drafter

    assert isinstance(made(), Cascade)
    assert isinstance(made(drafter="model"), ModelDrafter)
    assert made(drafter="model").score is margin
    assert made(mode="on").score is top_probability
    some = DSparkLlama(str(tiny_files.target), **EXACT)
    store = Store.of_texts([[5, 6, 7, 8] * 9], 100, some._vocabulary.fingerprint)
    some.close()
    store.save(tmp_path / "some.lookup")
    drafter = made(lookup_store=str(tmp_path / "some.lookup"))
    assert len(drafter.store) == len(store)


def test_it_says_what_it_does(tiny_files, capsys):
    """A line on stderr, as `Llama` says much there, and one where costs are measured.

    None if it is not to be verbose.
    """
    forget_all()
    lines = {}
    for name, options in {
        "copies": {},
        "both": {"draft_model": str(tiny_files.draft)},
        "off": {"speculation": Speculation(mode="off")},
        "quiet": {"verbose": False},
    }.items():
        llama = DSparkLlama(str(tiny_files.target), **{**EXACT, "verbose": True, **options})
        lines[name] = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("DSparkLlama")
        ]
        measured = [line for line in lines[name] if "measuring once" in line]
        assert len(measured) == (name in ("copies", "both"))
        lines[name] = [line for line in lines[name] if line not in measured]
        llama.close()
    assert lines["copies"] == [
        "DSparkLlama: drafts from the conversation, as many as the rule optimal allows; same output"
    ]
    assert "the conversation and the draft model" in lines["both"][0]
    assert lines["off"] == ["DSparkLlama: plain decoding, as asked"]
    assert lines["quiet"] == []


def test_a_recurrent_model_decodes_plainly(tiny_files):
    """Its cache cannot take tokens back."""
    texts = []
    for kind in (llama_cpp.Llama, DSparkLlama):
        llama = kind(str(tiny_files.mamba), n_ctx=256, verbose=False, seed=7)
        texts.append(said(llama, 12, temp=0.0))
        llama.close()
    assert texts[0] == texts[1]


def test_pickled(tiny_files):
    """The same again, drafts included."""
    llama = DSparkLlama(
        str(tiny_files.target), draft_model=str(tiny_files.draft), draft_options=DRAFT,
        speculation=Speculation(learn=False), **EXACT,
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(llama))
    assert said(again, 20, temp=0.0) == said(llama, 20, temp=0.0)
    assert isinstance(again.drafter, Cascade)
    llama.close()
    again.close()


def test_what_was_learned_is_kept(tiny_files):
    """The second time a few figures are checked; another option has a file of its own."""

    def files_after(**options):
        DSparkLlama(str(tiny_files.target), **{**EXACT, **options}).close()
        return len(list(learned_dir().glob("*.json")))

    forget_all()
    assert files_after() == 1
    (path,) = learned_dir().glob("*.json")
    before = json.loads(path.read_text())["costs"]["figures"]
    assert files_after() == 1
    after = json.loads(path.read_text())["costs"]["figures"]
    assert after.keys() == before.keys()
    checked = {rows for rows, figure in after.items() if figure != before[rows]}
    # A figure of few observations is lowered where those beside it show that it cannot be true.
    lowered = {rows for rows in checked if after[rows][0] < before[rows][0]}
    assert checked - lowered <= {"1", "2", "4", "step"}
    assert {"1", "2", "4"} & checked
    assert files_after(n_ctx=256) == 2
    assert files_after(n_ctx=128, speculation=Speculation(learn=False)) == 2


def test_embeddings_and_vocabularies_need_no_draft(tiny_files):
    """What does not generate is left alone."""
    only = DSparkLlama(str(tiny_files.target), vocab_only=True, verbose=False)
    assert only.tokenize(b"abc")
    only.close()
    embeds = DSparkLlama(str(tiny_files.target), embedding=True, **EXACT)
    assert len(embeds.embed("abc abc")) > 0
    embeds.close()


def test_long_answers_ask_for_each_piece_once(tiny_files):
    """Detokenizing is linear: what the tokenizer reads does not grow with the answer."""
    llama = DSparkLlama(str(tiny_files.target), **EXACT)
    asked = []
    original = llama._model.detokenize
    llama._model.detokenize = lambda tokens, special=False: (
        asked.append(len(tokens)) or original(tokens, special=special)
    )
    bias = dict.fromkeys(llama._vocabulary.end_tokens, -100.0)
    out = llama.create_completion("abc", max_tokens=300, temperature=0.0, logit_bias=bias)
    assert out["usage"]["completion_tokens"] == 300
    assert sum(asked) < 600
    llama.close()


def test_from_a_hub(tiny_files, tmp_path):
    """Both files through huggingface_hub; in its own process, which has the hub's address."""
    files = {"tiny-F32.gguf": tiny_files.target, "draft/tiny.gguf": tiny_files.draft}
    program = """
import sys
from dspark_gguf import DSparkLlama, Speculation
from dspark_gguf.errors import UsageError
options = {"n_ctx": 256, "verbose": False, "speculation": Speculation(learn=False)}
llama = DSparkLlama.from_pretrained("org/tiny", "*F32.gguf", draft_filename="draft/*", **options)
print(type(llama.drafter).__name__, llama.create_completion("abc", max_tokens=4)["usage"])
for pattern in ("*.bin", "*.gguf"):
    try:
        DSparkLlama.from_pretrained("org/tiny", pattern, **options)
    except UsageError as error:
        print(error)
"""
    with serving({"org/tiny": files}) as there:
        done = run_python("-c", program, env=there.environment(tmp_path))
    assert done.returncode == 0, done.stderr
    first, none, several = done.stdout.splitlines()
    assert first.startswith("Cascade {")
    assert "*.bin is not in org/tiny, which has draft/tiny.gguf" in none
    assert "matches 2 files of org/tiny: draft/tiny.gguf, tiny-F32.gguf." in several
