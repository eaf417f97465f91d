"""Whole answers on tiny random GGUFs in F32, where no rounding decides a token."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import text_or_file
from tests.fakes import rows_of

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80]
STOPPING = {
    "one": {"draft_max": 1, "draft_min_prob": 0},
    "fixed": {"draft_max": 5, "draft_min_prob": 0},
    "threshold": {"draft_max": 12, "draft_min_prob": 0.3},
}
# ignore_eos: answers as long as asked, for a random model may stop at any time.
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def pair(tiny_files):
    """A target and a draft that is the target with a little noise.

    The caches are F32 too, and flash attention is off: it would round them to F16.
    """
    exact = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
    with load_pair(
        tiny_files.target,
        tiny_files.draft,
        target_options=ModelOptions(**exact),
        draft_options=DraftOptions(**exact),
    ) as loaded:
        yield loaded


def speculative(pair, sampling, acceptance="rejection", stopping="fixed"):
    speculation = Speculation(mode="on", acceptance=acceptance, **STOPPING[stopping])
    return Decoder.for_pair(pair, Sampling(**sampling), speculation)


def plain(pair, sampling):
    return Decoder.for_pair(pair, Sampling(**sampling), Speculation(mode="off"))


def answer(decoder, prompt, n=60):
    return decoder.answer(prompt, Limits(max_tokens=n))


@pytest.mark.parametrize("stopping", STOPPING)
def test_greedy_is_plain_token_for_token(pair, stopping):
    """Sixteen prompts, and drafts are accepted and rejected in them."""
    accepted = drafted = 0
    for start in range(16):
        prompt = [start, *PROMPT]
        said = answer(speculative(pair, GREEDY, stopping=stopping), prompt)
        assert said.tokens == answer(plain(pair, GREEDY), prompt).tokens
        accepted, drafted = accepted + said.tally.accepted, drafted + said.tally.drafted
    assert 0 < accepted < drafted


@pytest.mark.parametrize("stopping", STOPPING)
def test_match_says_what_plain_decoding_says_with_the_same_seed(pair, stopping):
    """The draws are the target's own: a seed gives one text, with a draft or without."""
    accepted = 0
    for seed in range(16):
        settings = {**SAMPLED, "seed": seed}
        said = answer(speculative(pair, settings, "match", stopping), PROMPT)
        assert said.tokens == answer(plain(pair, settings), PROMPT).tokens
        accepted += said.tally.accepted
    assert accepted > 0


@pytest.mark.parametrize("acceptance", ["rejection", "match", "typical", "threshold"])
def test_the_same_seed_gives_the_same_text(pair, acceptance):
    """Also when the caches remember another conversation the second time."""
    settings = {**SAMPLED, "seed": 7}
    first = answer(speculative(pair, settings, acceptance), PROMPT)
    answer(speculative(pair, {**SAMPLED, "seed": 8}, acceptance), PROMPT[3:])
    assert answer(speculative(pair, settings, acceptance), PROMPT).tokens == first.tokens


def test_turns_that_grow_shrink_and_change(pair):
    """After every turn both caches hold true rows, whatever the turn before left in them."""
    rng = np.random.default_rng(0)
    decoder, conversation = speculative(pair, GREEDY), list(PROMPT)
    for turn in range(12):
        said = answer(decoder, conversation, n=int(rng.integers(1, 30)))
        committed = [*conversation, *said.tokens]
        require_true_caches(decoder, committed)
        kept = int(rng.integers(1, len(committed))) if turn % 2 else len(committed)
        conversation = [*committed[:kept], *rng.integers(0, 250, 3).tolist()][:120]


def require_true_caches(decoder, committed):
    """The next row of each cache is the one that a new context computes."""
    for cache in (decoder.target, decoder.drafter.cache):
        held = list(cache.tokens)
        assert held == committed[: len(held)]
        row = rows_of(cache, [99])[0].copy()
        cache.trim(0)
        prefill(cache, held)
        np.testing.assert_allclose(row, rows_of(cache, [99])[0], rtol=0, atol=1e-4)
        cache.trim(len(held))


def test_an_abandoned_answer_leaves_clean_caches(pair):
    """Closed after any number of rounds: what follows is as if it had been planned."""
    for rounds in range(1, 8):
        decoder = speculative(pair, GREEDY)
        committed = list(PROMPT)
        for k, round in enumerate(decoder.generate(PROMPT, Limits(max_tokens=60))):
            committed += round.tokens
            if k == rounds:
                break
        require_true_caches(decoder, committed)


def test_turn_two_reads_only_what_is_new(pair, count_tokens):
    """Tokens that each model is given: the new words and what it had not seen, never the rest."""
    decoder = speculative(pair, GREEDY)
    first = [*PROMPT, *range(100, 130)]
    said = answer(decoder, first, n=20)
    counts = count_tokens(decoder)
    second = [*first, *said.tokens, 5, 6, 7]
    draft_held = decoder.drafter.cache.length
    rounds = decoder.generate(second, Limits(max_tokens=10))
    reading = next(rounds)
    # The last token of an answer is read in the pass that needs it: the next prompt's.
    assert reading.cached_tokens == len(first) + 20 - 1
    assert counts == {"target": [4], "draft": []}
    next(rounds)
    assert counts["draft"][0] == len(second) + 1 - draft_held < 13


def test_a_shorter_turn_two_reads_nothing_twice(pair, count_tokens):
    """The first turn, edited near its end."""
    decoder = speculative(pair, GREEDY)
    first = [*PROMPT, *range(100, 130)]
    answer(decoder, first, n=20)
    counts = count_tokens(decoder)
    second = [*first[:-4], 9, 9]
    said = answer(decoder, second, n=20)
    assert (counts["target"][0], counts["draft"][0]) == (2, 3)
    assert said.tokens == answer(plain(pair, GREEDY), second, n=20).tokens


@pytest.fixture
def count_tokens(monkeypatch):
    """Counts the tokens of each pass of both models of a decoder."""

    def start(decoder):
        counts = {"target": [], "draft": []}
        for name, cache in (("target", decoder.target), ("draft", decoder.drafter.cache)):

            def counted(tokens, n_rows, real=cache.decode, passes=counts[name]):
                if len(tokens):
                    passes.append(len(tokens))
                return real(tokens, n_rows)

            monkeypatch.setattr(cache, "decode", counted)
        return counts

    return start


def test_what_is_no_prompt_and_no_file(pair):
    """Named in plain words: no type error, no number of the system's."""
    with pytest.raises(UsageError, match="token ids, not int"):
        Decoder.for_pair(pair).answer(3)
    message = (
        "^--grammar no.gbnf is neither text of this kind nor a file: No such file or directory"
    )
    with pytest.raises(UsageError, match=message):
        text_or_file("no.gbnf", "::=", "grammar")
