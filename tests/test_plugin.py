"""`DSparkLlama` beside `Llama`: the same tokens, for every way of drawing them."""

from __future__ import annotations

import json

import llama_cpp
import pytest

from dspark_gguf import Speculation
from dspark_gguf.config import DraftOptions
from dspark_gguf.errors import PairError, UsageError
from dspark_gguf.plugin import DSparkLlama

EXACT = {
    "n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7,
}  # fmt: skip
DRAFT = DraftOptions(n_ctx=512, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
PROMPT = [1, 2, 3, 4, 1, 2, 3]
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=5)


@pytest.fixture(scope="module")
def plain(tiny_files):
    """The original."""
    with_it = llama_cpp.Llama(str(tiny_files.target), **EXACT)
    yield with_it
    with_it.close()


@pytest.fixture(scope="module", params=["lookup", "model", "cascade"])
def ours(tiny_files, request):
    """The drop-in, with each drafter."""
    draft = None if request.param == "lookup" else tiny_files.draft
    speculation = Speculation() if request.param == "cascade" else ALWAYS
    made = DSparkLlama(
        str(tiny_files.target), draft_model=draft, draft_options=DRAFT, speculation=speculation,
        **EXACT,
    )  # fmt: skip
    yield made
    made.close()


def said(llama, count=60, prompt=PROMPT, **options):
    llama.set_seed(7)
    tokens = []
    for token in llama.generate(list(prompt), **options):
        tokens.append(token)
        if len(tokens) == count:
            break
    return tokens


WAYS = {
    "greedy": {"temp": 0.0},
    "sampled": {"temp": 0.9},
    "everything": {"temp": 1.2, "top_k": 7, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    "penalties": {"temp": 0.7, "repeat_penalty": 1.3, "frequency_penalty": 0.3},
    "mirostat": {"temp": 0.8, "mirostat_mode": 1},
    "mirostat 2": {"temp": 0.8, "mirostat_mode": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_tokens_as_llama(plain, ours, way):
    """One draw of the same chain for each token, in order: the same seed says the same."""
    assert said(ours, **WAYS[way]) == said(plain, **WAYS[way])


def test_processors_and_criteria_see_what_they_saw(plain, ours):
    """Token ids up to the place, whatever lies behind them in the batch."""
    seen = {}
    for name, llama in (("plain", plain), ("ours", ours)):
        ids = seen[name] = []

        def note(input_ids, scores, ids=ids):
            ids.append(input_ids.tolist())
            return scores

        def enough(input_ids, logits):
            return len(input_ids) >= 40

        processors = llama_cpp.LogitsProcessorList([note])
        criteria = llama_cpp.StoppingCriteriaList([enough])
        seen[name + " said"] = said(
            llama, temp=0.0, logits_processor=processors, stopping_criteria=criteria
        )
    assert seen["plain said"] == seen["ours said"]
    assert seen["plain"] == seen["ours"]


def test_an_abandoned_generator_leaves_true_books(plain, ours):
    """After any number of tokens, the next answer is that of a new model."""
    for count in (1, 2, 3, 5, 8):
        said(ours, count, temp=0.0)
        said(plain, count, temp=0.0)
        assert said(ours, 20, [*PROMPT, 5, 6], temp=0.0) == said(
            plain, 20, [*PROMPT, 5, 6], temp=0.0
        )


def test_tokens_that_the_caller_sends_are_read(plain, ours):
    """They stand behind the token just said. (`Llama` itself ends the process here.)"""
    tokens = ours.generate(list(PROMPT), temp=0.0)
    first = [next(tokens), next(tokens)]
    rest = [tokens.send([9, 10]), next(tokens), next(tokens), next(tokens)]
    assert rest == said(plain, 4, [*PROMPT, *first, 9, 10], temp=0.0)


def test_saved_state(plain, ours):
    """A state goes on where it was saved."""
    for llama in (plain, ours):
        said(llama, 9, temp=0.0)
    state = ours.save_state()
    after = said(ours, 20, [*PROMPT, 3], temp=0.0)
    said(ours, 30, [5, 6, 7, 8], temp=0.0)
    ours.load_state(state)
    assert (
        said(ours, 20, [*PROMPT, 3], temp=0.0) == after == said(plain, 20, [*PROMPT, 3], temp=0.0)
    )


def test_completions_and_streams(plain, ours):
    """The dictionaries of `create_completion`, but for id, time and file name."""
    for stream in (False, True):
        texts = []
        for llama in (plain, ours):
            out = llama.create_completion(
                "abc abd abc", max_tokens=24, temperature=0.0, stream=stream
            )
            parts = list(out) if stream else [out]
            texts.append(json.dumps([part["choices"] for part in parts]))
        assert texts[0] == texts[1]


def test_drafts_are_used(tiny_files):
    """Fewer passes than tokens."""
    llama = DSparkLlama(
        str(tiny_files.target), draft_model=tiny_files.draft, draft_options=DRAFT,
        speculation=ALWAYS, **EXACT,
    )  # fmt: skip
    passes = []
    decode = llama._cache.decode
    llama._cache.decode = lambda tokens: passes.append(len(tokens)) or decode(tokens)
    assert len(said(llama, 60, temp=0.0)) == 60
    assert len(passes) < 50
    assert max(passes) == 6
    assert llama.scores.shape[0] < 512 or not llama._logits_all
    llama.close()


def test_refusals(tiny_files, demo_files):
    """What cannot be honoured is refused by name."""
    target = str(tiny_files.target)
    with pytest.raises(UsageError, match="lossless"):
        DSparkLlama(target, speculation=Speculation(acceptance="typical"), **EXACT)
    with pytest.raises(UsageError, match="a path, a Drafter or None"):
        DSparkLlama(target, draft_model=3, **EXACT)
    with pytest.raises(PairError):
        DSparkLlama(target, draft_model=demo_files[1], **EXACT)


def test_a_recurrent_model_decodes_plainly(tiny_files):
    """Its cache cannot take tokens back."""
    texts = []
    for kind in (llama_cpp.Llama, DSparkLlama):
        llama = kind(str(tiny_files.mamba), n_ctx=256, verbose=False, seed=7)
        texts.append(said(llama, 12, temp=0.0))
        llama.close()
    assert texts[0] == texts[1]
