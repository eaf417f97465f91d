"""Losslessness of the whole loop: the exact dist of answers, from every path of every draw."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.cost import FixedCosts
from dspark_gguf.dist import Dist
from dspark_gguf.draft import Cascade, LookupDrafter, ModelDrafter
from dspark_gguf.noise import Noise
from dspark_gguf.records import Draft
from dspark_gguf.sampling import top_probability
from dspark_gguf.schedule import LookupRule, Optimal, make_stopping_rule
from dspark_gguf.testing import WalkedDraws, agreeing_rows, distribution_of, random_rows
from dspark_gguf.verify import Threshold, Typical, match, rejection
from tests.fakes import BlockWorld, Letters, World

FIXED = Speculation(draft_max=2, draft_min_prob=0.0)
THRESHOLD = Speculation(draft_max=2, draft_min_prob=0.5)


def sampled(**changes):
    """A world of three tokens, small enough to walk every path of its draws."""
    rows = random_rows(3, seed=5, spread=1.2)
    return World(
        rows, agreeing_rows(rows, 0.3, seed=6, spread=1.0), Letters(3),
        sampling=Sampling(top_k=0, top_p=1, min_p=0, **{"temperature": 1.1, **changes}),
        n_ctx=8, draft_n_ctx=8,
    )  # fmt: skip


def off_law(world, rule, stopping=FIXED, max_tokens=4, prompt=(0, 1)):
    """Largest error of any answer's probability, from all paths of all draws of the whole loop.

    `stopping` is settings, or makes a new stopping rule.
    """
    sampler = world.decoder().sampler
    make = stopping if callable(stopping) else lambda: make_stopping_rule(stopping)

    def answer(rng):
        decoder = world.decoder(rule, make())
        rounds = decoder.generate(prompt, Limits(max_tokens=max_tokens), WalkedDraws(rng))
        return tuple(token for round in rounds for token in round.tokens)

    def wanted(answer):
        steps = ((token, (*prompt, *answer[:k])) for k, token in enumerate(answer))
        return math.prod(sampler(world.target_rows(pre), pre).prob(tok) for tok, pre in steps)

    dist = distribution_of(answer)
    assert sum(dist.values()) == 1
    # What the loop never says is missing mass elsewhere, for the probabilities sum to 1.
    return max(abs(float(probability) - wanted(answer)) for answer, probability in dist.items())


CHANGES = {"temperature": {}, "penalties": {"repeat_penalty": 1.5, "presence_penalty": 0.4}}


@pytest.mark.parametrize("rule", [rejection, match])
@pytest.mark.parametrize("stopping", [FIXED, THRESHOLD], ids=["fixed", "threshold"])
@pytest.mark.parametrize("change", CHANGES)
def test_lossless_rules_keep_the_law_of_whole_answers(rule, stopping, change):
    """Exact to 1e-12: every answer has the probability that plain decoding gives it."""
    assert off_law(sampled(**CHANGES[change]), rule, stopping) < 1e-12


@pytest.mark.parametrize("rule", [rejection, match])
@pytest.mark.parametrize("stopping", [FIXED, THRESHOLD], ids=["fixed", "threshold"])
@pytest.mark.parametrize("is_chained", [True, False], ids=["markov", "independent"])
@pytest.mark.parametrize("head", [True, False], ids=["confidence", "probability"])
def test_blocks_keep_the_law(rule, stopping, is_chained, head):
    """Draws from a block's rows, greedily chained or independent, cut by either kind of score."""
    plain = sampled()
    sure = (lambda row: float(row[0] > row[1]) * 0.4 + 0.3) if head else None
    world = BlockWorld(
        plain.target_rows, plain.draft_rows, plain.tokenizer, sampling=plain.sampling, n_ctx=8,
        is_chained=is_chained, confidence=sure, score=top_probability,
    )  # fmt: skip
    assert off_law(world, rule, stopping) < 1e-12


def test_a_block_that_peeks_is_caught():
    """Dropping a drawn token because of what it is: off under `rejection`."""
    plain = sampled()
    rows = (plain.target_rows, plain.draft_rows)
    world = BlockWorld(*rows, plain.tokenizer, sampling=plain.sampling)
    decoder_of = world.decoder

    def peeking(rule=None, stopping_rule=None):
        decoder = decoder_of(rule, stopping_rule)
        steps = decoder.drafter.steps

        def dropping(tokens, plan):
            draft = yield from steps(tokens, plan)
            row = decoder.drafter.cache.rows(tuple(tokens))
            agrees = draft.tokens and draft.tokens[0] == int(row.argmax())
            return draft if agrees else Draft()

        decoder.drafter.steps = dropping
        return decoder

    world.decoder = peeking
    assert off_law(world, rejection) > 0.01
    assert off_law(world, match) < 1e-12


def accept_always(target, draft, token, draw):
    """BIASED: the draft's dist."""
    return token


@pytest.mark.parametrize("rule", [Typical(0.09, 0.3), Threshold(0.3), accept_always])
def test_lossy_rules_are_caught_by_the_same_enumeration(rule):
    """The documented lossy rules and a broken one: off by far."""
    assert off_law(sampled(), rule) > 0.01


class Peeking(ModelDrafter):
    """BIASED under `rejection`: gives a drawn token up when it turns out to be an unlikely one."""

    def steps(self, tokens, plan):
        draft = yield from super().steps(tokens, plan)
        sure = [
            dist.prob(token) > 0.4 for token, dist in zip(draft.tokens, draft.dists, strict=True)
        ]
        length = [*sure, False].index(False)
        return Draft(*(each.cut(length) for each in draft.segments))


def test_a_stop_that_sees_the_token_is_biased_under_ratio_only():
    """Why `admits` has no token in its signature; `match` does not mind."""
    world = sampled()
    world.drafter_kind = Peeking
    assert off_law(world, rejection) > 0.01
    assert off_law(world, match) < 1e-12


def sharing(world):
    """The same world, whose draft guesses with the target's noise and is scored by what it drew."""
    world.shares_noise = True
    return world


@pytest.mark.parametrize("stopping", [FIXED, Speculation(draft_max=2, rule="prefix")])
@pytest.mark.parametrize("change", CHANGES)
def test_shared_noise_keeps_the_law(stopping, change):
    """A draft that uses the noise which decides, and a stop that sees what was drawn."""
    assert off_law(sharing(sampled(**CHANGES[change])), match, stopping) < 1e-12


@pytest.mark.parametrize("is_chained", [True, False], ids=["markov", "independent"])
def test_blocks_with_shared_noise_keep_the_law(is_chained):
    """The tokens of a block that agree with the noise."""
    plain = sampled()
    rows = (plain.target_rows, plain.draft_rows)
    world = BlockWorld(*rows, plain.tokenizer, sampling=plain.sampling, is_chained=is_chained)
    assert off_law(sharing(world), match) < 1e-12


def keeps_close_ones(target, draft, token, draw):
    """BIASED: a draft token stands where the target's own draw would also be a likely one."""
    own = draw.token(target)
    return token if target.prob(token) > target.prob(own) else own


@pytest.mark.parametrize("rule", [rejection, keeps_close_ones])
def test_shared_noise_that_decides_twice_is_caught(rule):
    """`rejection` needs a draft whose noise does not decide; a rule that prefers is biased too."""
    assert off_law(sharing(sampled()), rule) > 0.005


class CopyAndLook:
    """So many copies, looks, and copies again."""

    def __init__(self, copies, looks, more):
        self.copies_, self.looks, self.more = copies, looks, more

    def plan(self, limit, behind=0, left=None):
        counts = [self.copies_, self.more]

        def take(scores):
            plan.length = min(self.looks, limit - counts[0])
            return min(counts.pop(0), len(scores), limit)

        plan = SimpleNamespace(
            length=limit, take=take, admits=lambda score: score > 0.34, goes_on=lambda: True
        )
        return plan

    def observe(self, round):
        """Nothing to learn."""

    def settle(self):
        """Nothing to learn."""


def learning():
    """The default rule, cheap rows, and expectations that make it try both."""
    table = FixedCosts([1.0, 1.1, 1.2, 1.3, 1.4], [0.1, 0.2, 0.3, 0.4])
    return LookupRule(table, Calibration(), 4, Optimal(table, Calibration(), 4))


def copying(kind):
    """A world whose drafter copies, with a model beside it or without."""
    world = sampled()

    def drafter(cache, sampler, tokenizer):
        lookup = LookupDrafter(tokenizer)
        return Cascade(lookup, ModelDrafter(cache, sampler, tokenizer)) if kind else lookup

    world.drafter_kind = drafter
    world.n_ctx = world.draft_n_ctx = 12
    return world


@pytest.mark.parametrize("rule", [rejection, match])
@pytest.mark.parametrize(
    ("cascade", "stopping"),
    [
        (False, lambda: CopyAndLook(2, 0, 0)),
        (False, learning),
        (True, learning),
        (True, lambda: CopyAndLook(1, 1, 0)),
        (True, lambda: CopyAndLook(0, 1, 1)),
        (True, lambda: CopyAndLook(1, 1, 1)),
    ],
    ids=["copies", "copies-learned", "both-learned", "copy-look", "look-copy", "copy-look-copy"],
)
def test_copies_keep_the_law(rule, cascade, stopping):
    """Alone, before looks, behind them, and as the learning rule mixes them."""
    world = copying(cascade)
    prompt = (0, 1, 0, 1, 0)
    drafted = 0
    for seed in range(20):
        rounds = world.decoder(rule, stopping()).generate(prompt, Limits(max_tokens=4), Noise(seed))
        drafted += sum(round.drafted for round in rounds)
    assert drafted
    assert off_law(world, rule, stopping, prompt=prompt) < 1e-12


def test_a_copy_that_lies_about_its_law_is_caught():
    """BIASED under `rejection`: a copy that claims to be drawn from a flat dist."""
    world = copying(None)
    decoder_of = world.decoder

    def lying(rule=None, stopping_rule=None):
        decoder = decoder_of(rule, stopping_rule)
        propose = decoder.drafter.propose

        def flat(tokens, plan):
            draft = propose(tokens, plan)
            dist = Dist(np.array([0, 1, 2]), np.full(3, 1 / 3))
            return Draft(*(replace(each, dists=(dist,) * len(each)) for each in draft.segments))

        decoder.drafter.propose = flat
        return decoder

    world.decoder = lying
    stopping = lambda: CopyAndLook(2, 0, 0)  # noqa: E731
    assert off_law(world, rejection, stopping, prompt=(0, 1, 0, 1, 0)) > 0.01
