"""Drafters: their caches over turns, and what they may never propose."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.draft import ModelDrafter, NoDrafter
from dspark_gguf.noise import Noise
from dspark_gguf.records import NO_DRAFT
from dspark_gguf.sampling import Sampler, top_probability
from dspark_gguf.schedule import Bounded
from dspark_gguf.testing import TableModel, agreeing_rows, random_rows
from tests.fakes import Letters, World, followed

GREEDY = Sampling(temperature=0)
N_TOKENS = 6


def drafter(rows=None, sampling=GREEDY, n_vocab=N_TOKENS, n_ctx=64, **cache):
    """A drafter for a target of `n_vocab`, whose last one ends an answer."""
    tokenizer = Letters(n_vocab)
    cache = TableModel(rows or random_rows(n_vocab, seed=4), n_ctx, max_rows=1)
    made = ModelDrafter(cache, Sampler(sampling, tokenizer.end_tokens), tokenizer)
    made.restart([], Noise(0))
    return made


def test_two_turns_the_second_one_shorter():
    """The test to write first for any drafter: each cache reads only what it has not seen.

    The second conversation is an edit: it shares 4 tokens with the first, then differs, and is
    shorter than what the caches hold. Every token decoded is accounted for.
    """
    rows = random_rows(N_TOKENS, seed=1)
    speculation = Speculation(draft_max=3, draft_min_prob=0.0)
    world = World(rows, agreeing_rows(rows, 0.6), Letters(N_TOKENS), speculation=speculation)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    decoder, limits = world.decoder(), Limits(max_tokens=12)
    target, draft = decoder.target, decoder.drafter.cache

    first = [0, 1, 2, 3, 4, 0, 1]
    emitted = [token for round in decoder.generate(first, limits) for token in round.tokens]
    assert emitted == world.plain(first, limits)[0]
    assert target.tokens == [*first, *emitted][:-1]
    held = draft.length
    assert held > 8

    second = [0, 1, 2, 3, 0, 0, 2, 4]
    target.passes.clear()
    draft.passes.clear()
    rounds = list(followed(decoder, second, decoder.generate(second, limits)))
    emitted = [token for round in rounds for token in round.tokens]
    assert emitted == world.plain(second, limits)[0]

    assert rounds[0].cached_tokens == 4
    # The target reads 8 - 4 tokens of the prompt, then one token and the drafts of each round.
    assert target.passes == [4, *(1 + round.drafted for round in rounds[1:])]
    # The draft reads 9 - 4 for its first guess, behind the first token; later its last token's
    # successor, and after a fully accepted draft also the last guess, which it had not read.
    expected, lag = [], 9 - 4
    for round in rounds[1:]:
        expected += [lag, *[1] * (round.drafted - 1)] if round.drafted else []
        lag = 2 if round.accepted == round.drafted else 1
    assert draft.passes == expected


def test_restart_reads_nothing():
    """No model may run before a plan asks for a draft: with speculation off there is no work."""
    made = drafter()
    made.restart([0, 1, 2, 3], Noise(0))
    assert made.cache.passes == []
    made.propose([0, 1, 2, 3], Bounded(1))
    made.restart([0, 1, 4], Noise(0))
    assert made.cache.tokens == [0, 1]
    assert made.cache.passes == [4]


def test_a_drafter_that_was_idle_catches_up():
    """Ten rounds without it, then a plan: it reads what it missed in one pass."""
    made = drafter(sampling=Sampling(temperature=0, ignore_eos=True))
    made.propose([0, 1, 2], Bounded(2))
    made.trim(2)
    tokens = [0, 1, 2, 3, 3, 1, 4, 0, 2, 1, 0, 3, 2]
    for length in range(3, 13):
        made.trim(length)
    draft = made.propose(tokens, Bounded(1))
    assert made.cache.passes == [3, 1, 11]
    assert draft.tokens == (int(random_rows(N_TOKENS, seed=4)(tuple(tokens))[:-1].argmax()),)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
@pytest.mark.parametrize("extra", [1, 100])
def test_ids_beyond_the_targets_vocabulary_are_never_proposed(temperature, extra):
    """Drafts are padded to rounder sizes: even a padding id of the best logit is masked.

    It takes no part in the confidence either.
    """
    base = random_rows(N_TOKENS + extra, seed=2)

    def rows(prefix):
        row = base(prefix).copy()
        row[N_TOKENS:] = 40.0
        return row

    sampling = Sampling(temperature=temperature, ignore_eos=True)
    made = drafter(rows, sampling, n_vocab=N_TOKENS)
    tokens = [0, 1]
    for _ in range(20):
        draft = made.propose(tokens, Bounded(2))
        assert len(draft) == 2
        assert all(dist.ids.max() < N_TOKENS for dist in draft.dists)
        confidence = top_probability(base(tuple(tokens))[:N_TOKENS])
        assert draft.segments[0].scores[0] == confidence
        tokens += draft.tokens
        made.trim(len(tokens) - 1)


def test_a_draft_of_fewer_ids_than_the_target():
    """It never reads an id that it lacks, which llama.cpp refuses; the answer is plain decoding's.

    40 worlds, whose targets say the missing id about every sixth token.
    """
    idle = 0
    for seed in range(40):
        rows = random_rows(N_TOKENS + 1, seed)
        world = World(rows, lambda prefix: rows(prefix)[:-1], Letters(N_TOKENS + 1))  # noqa: B023
        world.speculation = Speculation(draft_max=3, draft_min_prob=0.0)
        world.tokenizer.end_tokens = (0,)
        decoder, limits = world.decoder(), Limits(max_tokens=20)
        rounds = list(followed(decoder, [1, 2], decoder.generate([1, 2], limits)))
        emitted = [token for round in rounds for token in round.tokens]
        assert emitted == world.plain([1, 2], limits)[0]
        idle += N_TOKENS in emitted[:-1]
    assert idle > 10


@pytest.mark.parametrize("seed", range(5))
def test_a_draft_is_a_chain_of_draws_from_its_own_rows(seed):
    """Each dist is that of the row after all tokens before it, penalties included."""
    rows = random_rows(N_TOKENS, seed, spread=1.0)
    sampling = Sampling(repeat_penalty=1.7, repeat_last_n=-1, ignore_eos=True)
    made = drafter(rows, sampling)
    made.restart([0, 1], Noise(seed))
    draft = made.propose([0, 1, 1], Bounded(5))
    draws, past = Noise(seed).independent(), (0, 1, 1)
    for token, dist in zip(draft.tokens, draft.dists, strict=True):
        wanted = made.sampler(rows(past), past)
        assert wanted.ids.tolist() == dist.ids.tolist()
        assert wanted.probs.tolist() == dist.probs.tolist()
        assert token == draws.at(0).token(wanted)
        past += (token,)
    assert len(draft) == 5


class Asked:
    """A plan that admits some rows and notes what it was asked."""

    def __init__(self, length, admitted=99, enough=99):
        self.length, self.admitted, self.enough, self.seen = length, admitted, enough, []

    def admits(self, score):
        self.seen.append(score)
        return len(self.seen) <= self.admitted

    def goes_on(self):
        return len(self.seen) < self.enough


def test_the_plan_is_asked_before_each_draw():
    """With the row's top probability; at a refusal nothing more is drawn or read."""
    rows = random_rows(N_TOKENS, seed=3)
    made = drafter(rows, Sampling(ignore_eos=True))
    plan = Asked(6, admitted=2)
    draft = made.propose([0, 1], plan)
    assert len(draft) == 2
    prefixes = [(0, 1), (0, 1, draft.tokens[0]), (0, 1, *draft.tokens)]
    assert plan.seen == [top_probability(rows(prefix)) for prefix in prefixes]
    [segment] = draft.segments
    assert segment.scores == tuple(plan.seen)
    assert made.cache.passes == [2, 1, 1]
    assert (draft.steps, segment.caught_up) == (3, 2)


def test_no_look_after_the_plan_has_enough():
    """A plan may end a draft with the token that it just admitted: the next row is not computed."""
    made = drafter(sampling=Sampling(temperature=0, ignore_eos=True))
    draft = made.propose([0, 1], Asked(6, enough=2))
    assert (len(draft), draft.steps) == (2, 2)
    assert made.cache.passes == [2, 1]


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_no_draft_is_longer_than_its_plan(length):
    """Nor does the draft run once more than it has tokens to draw."""
    made = drafter(sampling=Sampling(temperature=0, ignore_eos=True))
    assert len(made.propose([0, 1], Bounded(length))) == length
    assert len(made.cache.passes) == length


def test_nothing_is_drafted_after_an_end_token():
    """What follows the end of an answer would be thrown away."""

    def rows(prefix):
        return np.eye(N_TOKENS, dtype=np.float32)[min(len(prefix), N_TOKENS - 1)]

    draft = drafter(rows).propose([0, 1], Bounded(9))
    assert draft.tokens == (2, 3, 4, 5)


@pytest.mark.parametrize("committed", range(4, 12))
def test_a_smaller_context_ends_drafting_not_the_answer(committed):
    """As many drafts as its cache has places for, then none, and never an error."""
    made = drafter(sampling=Sampling(temperature=0, ignore_eos=True), n_ctx=8)
    tokens = [k % 5 for k in range(committed)]
    assert len(made.propose(tokens, Bounded(3))) == max(0, min(3, 8 - committed))


def test_no_drafter_proposes_nothing():
    """Plain decoding is a drafter like any other to the loop."""
    made = NoDrafter()
    made.restart([1], Noise(0))
    made.trim(0)
    assert made.propose([1, 2], Bounded(9)) == NO_DRAFT
