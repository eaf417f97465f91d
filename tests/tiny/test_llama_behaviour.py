"""What `Llama` promises in public, held by `DSparkLlama`: tokens, prompts it knows, states, caches.

The cases are those of llama-cpp-python's own test-suite that need no model of its hub, in our own
words, on an attention model and on a recurrent one.
"""

from __future__ import annotations

from itertools import islice

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from tests.tiny_kinds import write_gemma3

EXACT = {
    "n_ctx": 256, "n_batch": 64, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False,
}  # fmt: skip
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=4, learn=False)
PROMPT, HISTORY = [1, 2, 3, 4, 1, 2, 3], [9, 8, 7, 6]


@pytest.fixture(params=["target", "mamba"])
def make(tiny_files, request):
    """Makes models of one kind; drafts where its cache takes tokens back."""
    made = []

    def one(kind=DSparkLlama, **options):
        speculation = {"speculation": ALWAYS} if kind is DSparkLlama else {}
        made.append(
            kind(str(tiny_files.__dict__[request.param]), **speculation, **EXACT, **options)
        )
        return made[-1]

    yield one
    for llama in made:
        llama.close()


def said(llama, tokens, count=12):
    return list(islice(llama.generate(list(tokens), temp=0.0), count))


@pytest.fixture
def wanted(make):
    """What an untouched `Llama` says."""
    return said(make(llama_cpp.Llama), PROMPT)


def test_a_prompt_that_was_read_is_not_read_again(make, wanted):
    """No reset; the books then count the prompt and what was said, but for the last token."""
    llama = make()
    llama.eval(PROMPT)
    resets = []
    reset = llama.reset
    llama.reset = lambda: (resets.append(1), reset())
    assert said(llama, PROMPT) == wanted
    assert llama.n_tokens == len(PROMPT) + len(wanted) - 1
    assert llama.input_ids[: llama.n_tokens].tolist() == [*PROMPT, *wanted[:-1]]
    if llama._cache.rollback == "removal":
        assert not resets


def test_a_shorter_prompt_than_what_was_read(make, wanted):
    """What lies behind it does not count."""
    llama = make()
    llama.eval(PROMPT + HISTORY)
    assert said(llama, PROMPT) == wanted


@pytest.mark.parametrize("place", range(len(PROMPT)))
def test_an_edited_history(make, place):
    """From the changed token on everything is new."""
    llama, plain = make(), make(llama_cpp.Llama)
    said(llama, PROMPT)
    changed = [*PROMPT[:place], 11, *PROMPT[place + 1 :]]
    assert said(llama, changed) == said(plain, changed)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("place", [5, 300, 590, 597])
def test_an_edit_behind_a_sliding_window(tmp_path, place, whole):
    """What the window has forgotten is read again. (`Llama` itself computes from what is left.)"""
    file = str(write_gemma3(tmp_path / "gemma3.gguf"))
    options = {**EXACT, "n_ctx": 1024, "swa_full": whole}
    llama = DSparkLlama(file, speculation=ALWAYS, **options)
    history = np.random.default_rng(1).integers(0, 250, 600).tolist()
    said(llama, history)
    changed = [*history[:place], 11, 12]
    fresh = llama_cpp.Llama(file, **options)
    assert said(llama, changed, 30) == said(fresh, changed, 30)
    for each in (llama, fresh):
        each.close()


def test_the_same_again(make, wanted):
    """Twice in a row, and after something else."""
    llama = make()
    assert said(llama, PROMPT) == wanted
    assert said(llama, PROMPT) == wanted
    said(llama, HISTORY)
    assert said(llama, PROMPT) == wanted


def test_a_state_of_another_object(make, wanted):
    """Saved by one, loaded by another that had read something else of the same length."""
    source, loaded = make(), make()
    source.eval(PROMPT)
    state = source.save_state()
    loaded.eval([*PROMPT[:-1], 12])
    loaded.load_state(state)
    assert loaded.n_tokens == len(PROMPT)
    assert loaded.input_ids[: loaded.n_tokens].tolist() == PROMPT
    assert said(loaded, PROMPT) == wanted


def test_states_of_llama_and_back(make, wanted):
    """A state of `Llama` goes on in the drop-in, and the other way round."""
    for source, target in ((llama_cpp.Llama, DSparkLlama), (DSparkLlama, llama_cpp.Llama)):
        saved = make(source)
        saved.eval(PROMPT)
        other = make(target)
        other.load_state(saved.save_state())
        assert said(other, PROMPT) == wanted


def test_a_ram_cache_is_hit(make):
    """Another object finds the prompt there and says the same."""
    cache, answers = llama_cpp.LlamaRAMCache(), []
    for _ in range(2):
        llama = make()
        llama.set_cache(cache)
        loads = []
        load = llama.load_state
        llama.load_state = lambda state, load=load, loads=loads: (loads.append(1), load(state))
        out = llama.create_completion(PROMPT, max_tokens=6, temperature=0.0)
        answers.append((out["choices"][0]["text"], out["usage"], len(loads)))
    (first, usage, misses), (second, again, hits) = answers
    assert (first, usage) == (second, again)
    assert (misses, hits) == (0, 1)


def test_a_state_keeps_the_seed(make):
    """After `set_seed` and a saved state, draws differ; loaded, they repeat."""
    llama = make()
    llama.set_seed(1337)
    state = llama.save_state()
    options = {"max_tokens": 16, "temperature": 1.5, "top_k": 0, "min_p": 0.0, "top_p": 1.0}

    def drawn():
        return llama.create_completion("abc", **options)["choices"][0]["text"]

    first, second = drawn(), drawn()
    llama.load_state(state)
    assert drawn() == first != second


def test_logits_processors_rule(make):
    """What a processor puts first is said; together with a bias both count."""
    llama = make()
    wanted = llama.tokenize(b"rot", add_bos=False)

    def favour(input_ids, logits):
        logits[wanted] = 1e6 - 1e3 * np.arange(len(wanted))
        return logits

    processors = llama_cpp.LogitsProcessorList([favour])
    out = llama.create_completion("abc", max_tokens=3, temperature=0.8, logits_processor=processors)
    first = llama.detokenize(wanted[:1]).decode()
    assert out["choices"][0]["text"].startswith(first)


def test_a_grammar_of_words(make):
    """Out of two words one is said, whole, and nothing after it."""
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "true" | "false"', verbose=False)
    out = make().create_completion("abc", max_tokens=9, temperature=0.8, grammar=grammar)
    assert out["choices"][0]["text"] in ("true", "false")
    assert out["choices"][0]["finish_reason"] == "stop"


def test_tokens_and_text(make):
    """Tokenizing is that of `Llama`, special tokens and the first one included."""
    ours, theirs = make(), make(llama_cpp.Llama)
    for text in (b"Hello World", b"hello<|im_end|>", b"", "h\u00e9llo \U0001f98a".encode()):
        for options in ({}, {"add_bos": False}, {"special": True}):
            tokens = ours.tokenize(text, **options)
            assert tokens == theirs.tokenize(text, **options)
            if tokens:
                assert ours.detokenize(tokens) == theirs.detokenize(tokens)


def test_a_prompt_that_does_not_fit(make):
    """The same refusal."""
    for kind in (llama_cpp.Llama, DSparkLlama):
        with pytest.raises(ValueError, match="exceed context window"):
            make(kind).create_completion([1] * 256, max_tokens=1)


@pytest.mark.parametrize("room", [1, 2, 5, 40])
def test_answers_end_with_the_context(make, room):
    """Drafts do not reach beyond it. (Half a character there is too much for `Llama` itself.)"""
    texts = []
    ascii_only = dict.fromkeys(range(94, 263), -1e6)
    for kind in (llama_cpp.Llama, DSparkLlama):
        prompt = ([1, 2, 3, 4] * 64)[: 256 - room]
        out = make(kind).create_completion(
            prompt, max_tokens=None, temperature=0.0, logit_bias=ascii_only
        )
        assert out["usage"]["completion_tokens"] == room
        texts.append((out["choices"], out["usage"]))
    assert texts[0] == texts[1]


def test_embeddings(tiny_files):
    """One by one, together and again they are equal, and those of `Llama`."""
    found = []
    for kind in (llama_cpp.Llama, DSparkLlama):
        llama = kind(str(tiny_files.target), embedding=True, pooling_type=1, **EXACT)
        texts = ["abc abc", "another text"]
        single = [llama.embed(text) for text in texts]
        assert np.allclose(llama.embed(texts), single, atol=1e-4)
        found.append(single)
        llama.close()
    assert np.allclose(*found, atol=1e-5)
