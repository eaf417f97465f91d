"""Where `Llama` works, `DSparkLlama` does: arguments, small contexts, states, copies, the end."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from collections import deque

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Speculation
from dspark_gguf.config import DraftOptions
from dspark_gguf.draft import Cascade, LookupDrafter
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import UsageError
from tests.children import run_python
from tests.fake_hub import serving

EXACT = {"flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7}
DRAFT = DraftOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32")
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=5, learn=False)
PROMPT = [1, 2, 3, 4, 1, 2]
ASCII = dict.fromkeys(range(94, 263), -1e6)


@pytest.fixture
def make(tiny_files):
    """Makes a `Llama` or a drop-in that drafts in a named way; closes them all."""
    made = []

    def one(way=None, file="target", **options):
        options = {"n_ctx": 256, **EXACT, **options}
        kind = llama_cpp.Llama if way is None else DSparkLlama
        if way is not None:
            options["speculation"] = Speculation(mode="off") if way == "off" else ALWAYS
        if way == "model":
            options |= {"draft_model": tiny_files.draft, "draft_options": DRAFT}
        elif way == "borrowed":
            options["draft_model"] = llama_cpp.Llama(
                str(tiny_files.draft), n_ctx=options["n_ctx"], **EXACT
            )
        made.append(kind(str(getattr(tiny_files, file)), **options))
        return made[-1]

    yield one
    for llama in made:
        llama.close()


def answer(llama, prompt=PROMPT, **options):
    options = {"max_tokens": None, "temperature": 0.0, "logit_bias": ASCII, **options}
    out = llama.create_completion(prompt, **options)
    return out["choices"], out["usage"]


@pytest.mark.parametrize("way", ["lookup", "model", "borrowed", "off"])
@pytest.mark.parametrize("n_ctx", [1, 16, 81, 100, 300])
def test_contexts_that_llama_cpp_rounds_up(make, n_ctx, way):
    """To a multiple of 256: the answer goes on to there, as that of `Llama`, and ends by length."""
    choices, usage = answer(make(way, n_ctx=n_ctx))
    assert (choices, usage) == answer(make(n_ctx=n_ctx))
    assert choices[0]["finish_reason"] == "length"
    assert usage["total_tokens"] == 512 if n_ctx == 300 else 256


@pytest.mark.parametrize("way", ["lookup", "off"])
def test_the_rounded_context_is_of_use(make, way):
    """Prompts, states and tables of logits beyond the number asked for; `Llama` itself fails."""
    whole = make(n_ctx=256)
    long = PROMPT * 25
    wanted = answer(whole, long)
    llama = make(way, n_ctx=100)
    assert answer(llama, long) == wanted
    assert answer(make(way, n_ctx=100, logits_all=True), long) == wanted
    state = llama.save_state()
    assert llama.input_ids[: llama.n_tokens].tolist() == whole.input_ids[: whole.n_tokens].tolist()
    short = make(n_ctx=100)
    short.eval(PROMPT)
    llama.load_state(short.save_state())
    assert list(llama.eval_tokens) == PROMPT
    assert answer(llama, long) == wanted
    llama.load_state(state)
    assert llama.n_tokens == 255


#: Every argument of `generate` in its order, with values that change what is said.
ARGUMENTS = (
    20,
    0.9,
    0.01,
    0.95,
    0.7,
    1.1,
    True,
    0.8,
    0.4,
    1.0,
    2,
    4.0,
    0.2,
    True,
    None,
    None,
    None,
)


@pytest.mark.parametrize("way", ["lookup", "off"])
def test_generate_takes_its_arguments_by_position(make, way):
    """All of them, by keyword too; one too many or unknown is refused at the call."""
    plain, ours = make(), make(way)
    names = list(inspect.signature(llama_cpp.Llama.generate).parameters)[2:]
    assert len(names) == len(ARGUMENTS)  # else: a new argument, to be looked at

    def said(llama, count):
        tokens = llama.generate(
            PROMPT, *ARGUMENTS[:count], **dict(zip(names[count:], ARGUMENTS[count:], strict=True))
        )
        return [next(tokens) for _ in range(40)]

    assert said(plain, 7) == said(plain, 17) == said(ours, 17) == said(ours, 7) == said(ours, 9)
    for wrong in (lambda: ours.generate(PROMPT, *ARGUMENTS, 1), lambda: ours.generate([1], so=2)):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize("way", ["lookup", "off"])
def test_nothing_to_go_on_from(make, way):
    """No prompt is refused; after `eval`, none is needed."""
    ours, plain = make(way), make()
    with pytest.raises(UsageError, match="prompt has no tokens"):
        next(ours.generate([]))
    firsts = []
    for llama in (ours, plain):
        llama.eval(PROMPT)
        tokens = llama.generate([], temp=0.0, reset=False)
        firsts.append([next(tokens) for _ in range(20)])
    assert firsts[0] == firsts[1]


@pytest.mark.parametrize("way", ["lookup", "off"])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_and_a_cache_of_states(make, way, stream):
    """What is stored with them is loaded, with and without them, by `Llama` too."""
    kept = llama_cpp.LlamaRAMCache()
    ours, keeps, plain = make(way), make(logits_all=True), make()
    for llama in (ours, plain):
        llama.set_cache(kept)
    asked = {"max_tokens": 8, "logprobs": 2, "stream": stream}

    def tokens(llama, prompt):
        out = llama.create_completion(prompt, temperature=0.0, logit_bias=ASCII, **asked)
        told = [part["choices"][0]["logprobs"] for part in (out if stream else [out])]
        return [each["tokens"] for each in told if each]

    for prompt in (PROMPT, [9, 8, 7], [*PROMPT, 5], PROMPT):
        assert tokens(ours, prompt) == tokens(keeps, prompt)
    assert answer(ours, [9, 8, 7, 3], max_tokens=8) == answer(plain, [9, 8, 7, 3], max_tokens=8)
    assert kept.cache_size > 0


@pytest.mark.parametrize("way", ["lookup", "off"])
@pytest.mark.parametrize("file", ["target", "mamba"])
def test_log_probabilities_everywhere(make, file, way):
    """Embedding models, recurrent ones, with speculation off; embeddings still work between."""
    wanted = None
    for options in ({}, {"embedding": True}):
        llama = make(way, file, **options)
        for _ in range(2):
            (choice,), _ = answer(llama, max_tokens=6, logprobs=1)
            wanted = wanted or choice["logprobs"]["token_logprobs"]
            assert np.allclose(choice["logprobs"]["token_logprobs"], wanted, atol=1e-4)
            if options:
                assert len(llama.create_embedding("abc")["data"][0]["embedding"]) > 0


SEQUENCES = {
    "list": list,
    "array": np.array,
    "array of int64": lambda tokens: np.array(tokens, dtype=np.int64),
    "deque": deque,
    "tuple": tuple,
    "list of numpy's": lambda tokens: [np.int32(token) for token in tokens],
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_detokenize_takes_any_sequence(make, kind):
    """As `Llama` does, short and long, and between growing lists; a generator too."""
    plain, ours = make(), make("lookup")
    tokens = [*range(40, 90), 256, 257]
    for length in (0, 1, 20, 40, 52, 33):
        wanted = plain.detokenize(SEQUENCES[kind](tokens[:length]))
        assert ours.detokenize(SEQUENCES[kind](tokens[:length])) == wanted
        assert ours.detokenize(tokens[:length]) == wanted
        assert ours.detokenize(token for token in tokens[:length]) == wanted
        assert ours.detokenize(SEQUENCES[kind](tokens[:length]), special=True) == (
            plain.detokenize(tokens[:length], special=True)
        )


def test_a_criterion_may_read_what_it_is_given(make):
    """It is given an array."""
    texts = []
    for way in (None, "lookup"):
        llama = make(way)
        seen = []

        def enough(ids, logits, llama=llama, seen=seen):
            seen.append(llama.detokenize(ids))
            return len(seen) > 20

        answer(llama, stopping_criteria=llama_cpp.StoppingCriteriaList([enough]))
        texts.append(seen)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_copies(tiny_files, again):
    """Objects of a class made by `with_draft` too: they draft the same way."""
    for kind in (DSparkLlama, DSparkLlama.with_draft(str(tiny_files.draft), draft_options=DRAFT)):
        unmeasured = Speculation(learn=False)  # nothing is left out for its costs
        one = kind(str(tiny_files.target), n_ctx=100, speculation=unmeasured, **EXACT)
        other = again(one)
        assert isinstance(other, DSparkLlama)
        assert type(other.drafter) is type(one.drafter)
        assert type(other.drafter) is (LookupDrafter if kind is DSparkLlama else Cascade)
        assert answer(other) == answer(one)
        for llama in (one, other):
            llama.close()


@pytest.mark.parametrize("draft", [False, True])
def test_it_goes_with_its_last_reference(tiny_files, draft):
    """Without `close` and without the collector of cycles, as a `Llama` does."""
    llama = DSparkLlama(
        str(tiny_files.target), draft_model=tiny_files.draft if draft else None,
        n_ctx=256, **EXACT,
    )  # fmt: skip
    llama.create_completion(PROMPT, max_tokens=9, logprobs=1)
    gone = weakref.ref(llama)
    gc.disable()
    try:
        del llama
        assert gone() is None
    finally:
        gc.enable()


def test_after_the_end(make):
    """Closed twice is closed; what is used then is refused by name (`Llama` ends the process)."""
    for options in ({}, {"vocab_only": True}):
        llama = make("lookup", **options)
        llama.close()
        llama.close()
        for use in (
            lambda: llama.create_completion("abc"),  # noqa: B023 - called at once
            lambda: next(llama.generate([1, 2])),  # noqa: B023
            lambda: llama.tokenize(b"abc"),  # noqa: B023
            lambda: llama.eval([1]),  # noqa: B023
            lambda: llama.save_state(),  # noqa: B023
            lambda: llama.n_ctx(),  # noqa: B023
        ):
            with pytest.raises(UsageError, match="was closed"):
                use()


def test_from_pretrained_as_of_llama(tiny_files, tmp_path):
    """Its arguments by position, None where that is the default."""
    program = """
from dspark_gguf import DSparkLlama
llama = DSparkLlama.from_pretrained("org/tiny", "*.gguf", None, None, "auto", None, verbose=False)
print(type(llama.drafter).__name__)
here = DSparkLlama.from_pretrained("org/tiny", "*.gguf", ["*.txt"], "here", False, verbose=False)
print(here.model_path)
"""
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with serving({"org/tiny": {"tiny.gguf": tiny_files.target, "note.txt": note}}) as there:
        done = run_python("-c", program, env=there.environment(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "LookupDrafter"
    assert {path.name for path in (tmp_path / "here").iterdir()} >= {"tiny.gguf", "note.txt"}
