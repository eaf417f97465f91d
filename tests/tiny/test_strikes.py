"""Every drafter survives an exception anywhere: what is said and drafted next is right."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.draft import LookupDrafter, Store
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.dropin.llama_cache import borrow
from dspark_gguf.dropin.tokenizer import GrowingTokenizer
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.schedule import Bounded
from tests.fakes import Letters
from tests.strikes import places, traced
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import Eagle, write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_heads import Made, write_mtp
from tests.tiny_kinds import WRITERS

EXACT = {
    "n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
PROMPT = [1, 2, 3, 4, 1, 2, 3]
NEXT = [*PROMPT, 9, 1, 2, 3]
#: Three tokens are likely, so that what was said comes again and can be copied.
SAMPLING = Sampling(
    temperature=0.7, seed=4, ignore_eos=True, repeat_penalty=1.1, repeat_last_n=-1,
    logit_bias={1: 12.0, 2: 12.0, 3: 12.0},
)  # fmt: skip
FEW = Limits(max_tokens=10)
BY_HAND = {"mode": "on", "draft_min_prob": 0.0, "draft_max": 4}


def test_the_index_of_copies_at_every_step():
    """Whatever was interrupted, it finds what a new one finds."""
    said = [1, 2, 3, 1, 2, 3, 1]
    later = [*said, 2, 5, 1, 2]

    def work():
        drafter.restart(said[:-1], None)
        drafter.guess(said, 3, (2, 3))
        drafter.trim(4)
        drafter.propose(said, Bounded(3))

    drafter = LookupDrafter(Letters(8))
    wanted = LookupDrafter(Letters(8)).guess(later, 4)
    assert wanted[0]
    for at in range(1, traced(work) + 1):
        drafter = LookupDrafter(Letters(8))
        traced(work, at)
        drafter.restart(later[:-1], None)
        assert drafter.guess(later, 4) == wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strikes")


def pair_for(kind, tiny_files, folder):
    """Models for a kind of drafter, or of the target's memory."""
    target = WRITERS[kind](folder / f"{kind}.gguf") if kind in WRITERS else tiny_files.target
    draft = None if kind in (*WRITERS, "lookup", "store") else tiny_files.draft
    if kind == "block":
        draft = write_dflash(folder / "block.gguf")
    if kind in HEADS:
        target = draft = write_mtp(folder / f"{kind}.gguf", HEADS[kind])
    if kind == "eagle3":
        target = write_cycle_llama(folder / "llama.gguf", random=True)
        draft = write_eagle3(folder / "eagle3.gguf", Eagle(random=True))
    if kind == "assistant":
        target = write_gemma4(folder / "gemma4.gguf")
        draft = write_assistant(folder / "assistant.gguf", 3)
    target_options = ModelOptions(**EXACT, swa_full=False)
    return Pair(target, draft, target_options, DraftOptions(**EXACT))


def speculation_for(kind, pair, folder):
    if kind == "cascade":
        return Speculation(learn=False)
    if kind == "store":
        path = folder / "texts.lookup"
        store = Store.of_texts([[1, 2, 3, 9, 8, 7] * 5], 100, pair.vocabulary.fingerprint)
        store.save(path)
        return Speculation(**BY_HAND, lookup_store=str(path))
    return Speculation(**BY_HAND, drafter="model" if kind in STEPS else "lookup")


#: Targets with prediction heads.
HEADS = {
    "head": Made(), "head of a hybrid": Made("qwen35", recurrent=0.1),
    "three heads": Made("mimo2", heads=3),
}  # fmt: skip
STEPS = ["model", "block", *HEADS, "eagle3", "assistant"]
KINDS = ["lookup", "store", "cascade", *STEPS, "mamba", "qwen35", "gemma3"]


@pytest.mark.parametrize("kind", KINDS)
def test_decoders(tiny_files, folder, kind):
    """With each drafter, and with each way of taking tokens back: the next answer is the same."""
    with pair_for(kind, tiny_files, folder) as pair:
        speculation, costs = speculation_for(kind, pair, folder), LearnedCosts()
        if kind == "cascade":  # whatever was measured on a busy machine, drafts pay at first
            costs = pair.learned(speculation).costs
            costs.add_profile(dict.fromkeys(range(1, 14), 1e-3), range(1, 14))
        plain = Decoder.for_pair(pair, SAMPLING, Speculation(mode="off")).answer(NEXT, FEW)
        decoder = Decoder.for_pair(pair, SAMPLING, speculation)

        def work():
            decoder.answer(PROMPT, FEW)

        drafted = 0
        for at in places(work, 60):
            traced(work, at)
            answer = decoder.answer(NEXT, FEW)
            assert answer.tokens == plain.tokens, at
            drafted += answer.tally.drafted
        assert drafted > 0
        require_sound(costs)


@pytest.mark.parametrize("kind", ["head", "three heads", "eagle3", "assistant"])
def test_states_at_every_step(tiny_files, folder, kind):
    """Interrupted while it drafts or follows its target, a draft guesses as if nothing had been."""
    with pair_for(kind, tiny_files, folder) as pair:
        target, draft = pair.target_cache, pair.draft_cache()

        def work():
            draft.begin(PROMPT[:5])
            prefill(target, PROMPT)
            draft.propose(8, 2)
            target.decode([8, 7], 1)
            target.trim(len(PROMPT) + 1)

        def rows():
            draft.begin(NEXT[:-1])
            target.reuse_prefix(NEXT[:-2])
            target.decode(NEXT[target.length : -1], 1)
            if not draft.is_ready(len(NEXT) - 1):
                return None  # it does not guess
            found = draft.propose(NEXT[-1], 3).rows
            return np.stack([found[k].copy() for k in range(3)])

        wanted, missing = rows(), 0
        for at in places(work, 200):
            traced(work, at)
            found = rows()
            missing += found is None
            if found is not None:
                np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3, err_msg=str(at))
        assert missing == 0


@pytest.mark.parametrize("kind", ["lookup", "mamba", "qwen35", "gemma3"])
def test_caches_at_every_step(tiny_files, folder, kind):
    """Interrupted while it takes tokens back, a cache does not tell of what its memory lost."""
    with pair_for(kind, tiny_files, folder) as pair:
        cache = pair.target_cache

        def row():
            prefill(cache, NEXT[:-1])
            return cache.decode(NEXT[cache.length :], 1)[0].copy()

        wanted = row()
        for at in range(1, traced(lambda: cache.trim(5)) + 1):
            assert np.allclose(row(), wanted, atol=1e-4), at
            traced(lambda: cache.trim(5), at)
        assert np.allclose(row(), wanted, atol=1e-4)


def require_sound(costs):
    """What was learned can be used, kept and read again."""
    assert np.isfinite(costs.target_seconds).all()
    assert (costs.target_seconds > 0).all()
    LearnedCosts().restore(costs.as_dict())


def test_costs_at_every_step():
    """A figure that was interrupted is one that was never seen."""

    def work():
        costs.add_pass(1, 0.01)
        costs.add_pass(3, 0.02)
        costs.add_first_draft_step(0.001, 1)
        costs.add_draft_step(0.001)

    costs = LearnedCosts()
    for at in range(1, traced(work) + 1):
        costs = LearnedCosts()
        traced(work, at)
        require_sound(costs)


LLAMA = {"n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False}
GRAMMAR = 'root ::= "[abc, " ("ab" | "ac") [a-c] [a-c] ("ab" | "ac") "]"'
WAYS = {
    "sampled": {"temperature": 0.9},
    "grammar": {"temperature": 0.9, "grammar": GRAMMAR},
    "log-probabilities": {"temperature": 0.9, "logprobs": 1},
}


@pytest.mark.parametrize(
    ("kind", "way", "most"),
    [
        *[(kind, "sampled", 40) for kind in ("model", "lookup", "llama", "cascade")],
        *[(kind, "grammar", 30) for kind in ("model", "lookup")],
        ("lookup", "log-probabilities", 40),
    ],
)
def test_the_drop_in(tiny_files, kind, way, most):
    """What `DSparkLlama` says after a strike is what `Llama` says."""
    draft = {"lookup": None, "llama": llama_cpp.Llama(str(tiny_files.draft), **LLAMA)}.get(
        kind, str(tiny_files.draft)
    )
    speculation = Speculation(learn=False) if kind == "cascade" else Speculation(**BY_HAND)
    plain = llama_cpp.Llama(str(tiny_files.target), **LLAMA, logits_all=True)
    ours = DSparkLlama(str(tiny_files.target), draft_model=draft, speculation=speculation, **LLAMA)

    def said(llama, prompt):
        asked = {"max_tokens": 12, "seed": 5, **WAYS[way]}
        if "grammar" in asked:
            asked["grammar"] = llama_cpp.LlamaGrammar.from_string(GRAMMAR, verbose=False)
        return llama.create_completion(prompt, **asked)["choices"][0]["text"]

    def work():
        said(ours, "abc abd abc")

    wanted, again = (said(plain, prompt) for prompt in ("abc abd abc", "abc abd ab"))
    work()
    for k, at in enumerate(places(work, most)):
        traced(work, at)
        if k % 2:
            assert said(ours, "abc abd abc") == wanted, at
        else:
            assert said(ours, "abc abd ab") == again, at
    for llama in (ours, plain):
        llama.close()


def test_the_cache_of_the_drop_in_at_every_step(tiny_files):
    """Its books never tell of tokens that its memory no longer has."""
    llama = llama_cpp.Llama(str(tiny_files.target), **LLAMA)
    cache = borrow(llama)
    cache.reuse_prefix(NEXT[:-1])
    wanted = cache.decode(NEXT, 1)[0].copy()
    steps = traced(lambda: cache.trim(5))
    for at in range(1, steps + 1):
        prefill(cache, NEXT)
        traced(lambda: cache.trim(5), at)
        assert llama.n_tokens <= len(NEXT)
        cache.sync(llama._input_ids.tolist(), NEXT)
        prefill(cache, NEXT[:-1])
        assert np.allclose(cache.decode(NEXT[-1:], 1)[0], wanted, atol=1e-4), at
    llama.close()


def test_growing_text_at_every_step(tiny_files):
    """No token is read twice."""
    llama = llama_cpp.Llama(str(tiny_files.target), vocab_only=True, verbose=False)
    tokens = [k % 200 for k in range(60)]
    wanted = llama_cpp.LlamaTokenizer(llama).detokenize(tokens)

    def work():
        tokenizer.detokenize(tokens[:50])
        tokenizer.detokenize(tokens[:55])

    tokenizer = GrowingTokenizer(llama)
    for at in range(1, traced(work) + 1):
        tokenizer = GrowingTokenizer(llama)
        traced(work, at)
        assert tokenizer.detokenize(tokens) == wanted, at
    llama.close()
