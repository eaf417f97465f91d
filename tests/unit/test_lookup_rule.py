"""The rule for free guesses, alone and with a drafter that takes steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dspark_gguf.calibration import KNOTS, Calibration
from dspark_gguf.config import Limits, Sampling
from dspark_gguf.cost import FixedCosts
from dspark_gguf.dist import Dist
from dspark_gguf.draft import Cascade, LookupDrafter, ModelDrafter
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.sampling import margin
from dspark_gguf.schedule import LookupRule, Optimal
from dspark_gguf.testing import agreeing_rows, random_rows
from tests.fakes import Letters, World, followed

RNG = np.random.default_rng(4)


def costs(row=0.3, step=0.5, limit=64):
    """A pass takes 1 and `row` for each row more; a step, `step`."""
    rows = 1.0 + row * np.arange(limit + 1)
    return FixedCosts(rows, step * np.arange(1, limit + 1))


def taught(calibration, truth, count=3000):
    """Let it see `count` guesses with scores everywhere, right with probability `truth(score)`."""
    for score in RNG.uniform(KNOTS[0], KNOTS[-1], count):
        calibration.observe([score], [float(RNG.random() < truth(score))])
    return calibration


def fate(scores, alive, drafted=0):
    """A round in which `alive` guesses were right, of which some were drafted."""
    accepted = min(alive, drafted)
    guesses = [*range(min(alive, len(scores))), *[-1] * (len(scores) - alive)]
    draft = Draft(Segment.of_guesses("lookup", guesses, scores, drafted))
    return Round(tuple(range(accepted + 1)), draft=draft, verdict=Verdict(accepted, accepted))


@pytest.mark.parametrize("seed", range(20))
def test_the_number_of_copies_is_the_best_one(seed):
    """Against trying every number, on a jagged table."""
    rng = np.random.default_rng(seed)
    rows = 1.0 + np.cumsum(rng.choice([0.0, 0.02, 0.4], 17))
    rule = LookupRule(FixedCosts(rows, np.ones(16)), taught(Calibration(), lambda s: 0.9), 16)
    scores = rng.uniform(1, 9, 16).tolist()
    survival = np.cumprod(np.interp(scores, KNOTS, rule.calibration.confidence))
    worth = [survival[:j].sum() - rule.rate * rows[j] for j in range(17)]
    plan = rule.plan(16)
    assert plan.take(scores) == int(np.argmax(worth))
    assert plan.length == 0  # no draft steps
    assert rule.plan(5).take(scores) <= 5


def test_no_guesses_no_copies():
    """And no room, no plan."""
    rule = LookupRule(costs(), Calibration.of_copies(), 64)
    assert rule.plan(9).take([]) == 0
    assert rule.plan(0).length == 0


def test_it_learns_from_guesses_that_nobody_verified():
    """At first not worth a row; after right guesses only, drafted, without a trial in between."""
    rule, scores = LookupRule(costs(0.6), Calibration.of_copies(), 64), (2.2,) * 4
    assert rule.plan(64).take(scores) == 0
    for _ in range(60):
        rule.observe(fate(scores, 4))
    assert rule.plan(64).take(scores) == 4


@pytest.mark.parametrize("row", [0.05, 0.3, 0.8])
def test_a_text_that_misleads_costs_little(row):
    """Guesses that look certain and are always wrong, 200 of them: what that loses is bounded.

    From a cold start by a few plain rounds; after a text in which the same guesses were right, by
    what two such drafts cost.
    """

    def play(rule, alive, rounds):
        seconds = tokens = 0.0
        for _ in range(rounds):
            drafted = rule.plan(64).take((6.0,) * 30)
            rule.observe(fate((6.0,) * 30, alive, drafted))
            seconds += 1.0 + row * drafted
            tokens += min(alive, drafted) + 1
        return tokens, seconds

    tokens, seconds = play(LookupRule(costs(row), Calibration.of_copies(), 64), 0, 200)
    assert seconds - tokens < 8.0
    rule = LookupRule(costs(row), Calibration.of_copies(), 64)
    play(rule, 30, 20)
    tokens, seconds = play(rule, 0, 200)
    assert seconds - tokens < 25.0


def test_a_text_that_copies_is_fast():
    """Right guesses only: most of them in one pass, though none is ever quite certain."""
    rule, scores = LookupRule(costs(0.1), Calibration.of_copies(), 64), (6.0,) * 64
    drafted = 0
    for _ in range(40):
        drafted = rule.plan(64).take(scores)
        rule.observe(fate(scores, 64, drafted))
    assert drafted > 30


def looking(agreement, row=0.3, step=0.2):
    """A rule with a taught drafter that steps."""
    table = costs(row, step, 12)
    seen = taught(Calibration(), lambda score: agreement)
    return LookupRule(table, Calibration.of_copies(), 12, Optimal(table, seen, 12))


def test_the_better_drafter_has_the_round():
    """Sure copies and a poor draft: copies alone. Poor copies and a good draft: steps alone."""
    rule = looking(0.05)
    taught(rule.calibration, lambda score: 0.98)
    plan = rule.plan(12)
    assert plan.take([6.0] * 12) > 5
    assert plan.length == 0
    rule = looking(0.97)
    taught(rule.calibration, lambda score: 0.05)
    plan = rule.plan(12)
    assert plan.take([2.0] * 12) == 0
    assert plan.length > 0
    assert plan.admits(8.0)


def test_looks_go_on_behind_copies_and_copies_behind_looks():
    """Two sure copies, then a good draft; and the other way round."""
    rule = looking(0.97, row=0.05, step=0.1)
    taught(rule.calibration, lambda score: 0.98)
    plan = rule.plan(12)
    assert plan.take([6.0, 6.0]) == 2
    assert 0 < plan.length <= 10
    assert plan.admits(8.0)
    assert plan.goes_on()
    assert plan.admits(8.0)
    assert plan.take([6.0] * 30) == 8  # what is left of 12
    alone = LookupRule(rule.costs, rule.calibration, 12, rule.step_rule, steps_after=False)
    plan = alone.plan(12)
    assert not (plan.take([6.0, 6.0]) and plan.length)


@pytest.mark.parametrize("seed", range(6))
def test_whole_drafts_in_the_loop(seed):
    """Copies and steps in any order: plain decoding's text, and caches that keep their promise."""
    rng = np.random.default_rng(seed)
    rows = random_rows(4, seed=seed)
    world = World(rows, agreeing_rows(rows, 0.8), Letters(4), n_ctx=200, draft_n_ctx=150)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    world.drafter_kind = lambda cache, sampler, tokenizer: Cascade(
        LookupDrafter(tokenizer), ModelDrafter(cache, sampler, tokenizer, margin)
    )
    table = costs(float(rng.uniform(0.02, 0.3)), float(rng.uniform(0.01, 0.3)))
    rule = LookupRule(table, Calibration.of_copies(), 64, Optimal(table, Calibration(), 12))
    decoder = world.decoder(stopping_rule=rule)
    prompt = [0, 1, 2, 0, 1]
    kinds = {"copies": 0, "steps": 0, "both": 0}
    said = []
    decoder.drafter.cache = decoder.drafter.other.cache
    for round in followed(decoder, prompt, decoder.generate(prompt, Limits(max_tokens=150))):
        said += round.tokens
        steps = round.draft.steps
        copies = sum(len(each) for each in round.draft.segments if each.source == "lookup")
        kinds["steps"] += bool(steps)
        kinds["copies"] += bool(copies)
        kinds["both"] += bool(steps and copies)
    assert said == world.plain(prompt, Limits(max_tokens=150))[0]
    assert kinds["steps"]


class Takes:
    """A plan that copies `first` guesses, wants steps, and then copies `later` ones."""

    length, room = 6, 6

    def __init__(self, first, later):
        self.counts = [first, later]

    def take(self, scores):
        return min(self.counts.pop(0), len(scores))


class Refused(ModelDrafter):
    """Steps that bring nothing, or so many tokens."""

    def __init__(self, count):
        self.count = count

    def steps(self, tokens, plan):
        dists = (Dist.point(6),) * self.count
        return Draft(Segment("model", (6,) * self.count, dists, (0.1,) * (self.count or 1), (0.1,)))
        yield


@pytest.mark.parametrize(("first", "later"), list(itertools.product(range(4), range(4))))
def test_a_guess_is_counted_once(first, later):
    """Also where draft steps between two copies brought nothing, and the second goes on."""
    song = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    drafter = Cascade(LookupDrafter(Letters(8)), Refused(0))
    draft = drafter.propose(song, Takes(first, later))
    assert draft.tokens == (3, 4, 5, 6, 0, 1)[: first + later]
    said = (*draft.tokens, 9)
    seen = [len(o) for _, one, o in draft.outcomes(said) if one.source == "lookup"]
    assert sum(seen) == min(len(said), 6)


def test_no_guess_lies_beyond_the_answer():
    """A pass of several may verify guesses that the plan did not take."""
    song = [6, 6, 0, 1, 2, 3, 4, 5, 0, 3]
    for count in range(7):
        draft = Cascade(LookupDrafter(Letters(8)), Refused(count)).propose(song, Takes(0, 0))
        *_, last = draft.segments
        assert len(draft) + len(last.untried) <= 6


def test_looks_learn_from_their_own_tokens_only():
    """Copies stood before them and after them."""
    seen = Calibration()
    rule = LookupRule(
        costs(limit=12), Calibration.of_copies(), 12, Optimal(costs(limit=12), seen, 12)
    )
    for accepted, wanted in ((1, (0, 0)), (2, (0, 1)), (3, (1, 2)), (4, (2, 2)), (6, (2, 2))):
        before = seen.tested, float(seen._survived.sum())
        seen._keep = 1.0
        said = tuple(range(accepted + 1))
        guesses = (*said[:accepted], *[-1] * (6 - accepted))
        dists = (Dist.point(0),) * 2
        draft = Draft(
            Segment.of_guesses("lookup", guesses[:2], (), 2),
            Segment("model", guesses[2:4], dists, (2.0, 3.0), (0.1, 0.1)),
            Segment.of_guesses("lookup", guesses[4:], (), 2),
        )
        rule.observe(Round(said, draft=draft, verdict=Verdict(accepted, accepted)))
        survived, tested = float(seen._survived.sum()) - before[1], seen.tested - before[0]
        assert (survived, tested) == pytest.approx(wanted)


def test_every_path_of_a_plan_ends():
    """Whatever is asked in whatever order, the draft stays within the limit."""
    rule = looking(0.9, row=0.02, step=0.02)
    taught(rule.calibration, lambda score: 0.9)
    for first, steps, limit in itertools.product(range(6), range(6), (1, 4, 12)):
        plan = rule.plan(limit)
        count = plan.take([6.0] * first)
        for _ in range(min(steps, plan.length)):
            if not plan.admits(8.0):
                break
            count += 1
        count += plan.take([6.0] * 40)
        assert count <= limit
