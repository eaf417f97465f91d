"""The rules that learn: lossless in every case, and as fast as promised in replay."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Sampling
from dspark_gguf.cost import FixedCosts
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.measure.replay import replay
from dspark_gguf.schedule import LookupRule, Optimal, Prefix
from dspark_gguf.schedule.stopping import solve
from dspark_gguf.testing import agreeing_rows, random_rows
from dspark_gguf.verify import match, rejection
from tests.exact.test_lossless import off_law
from tests.fakes import Letters, World, round_of
from tests.recorded import rounds, text

#: Seconds of 1, 2, ... rows. Steps make rules drop steps and look across.
TABLES = {
    "flat": FixedCosts([1, 1.01, 1.02, 1.03], [0.01, 0.02, 0.03]),
    "jagged": FixedCosts([1, 1.6, 1.2, 1.9], [0.05, 0.1, 0.15]),
    "step": FixedCosts([1, 1.05, 1.7, 1.75], [0.1, 0.2, 0.3]),
}


class Eager(Optimal):
    """Without the account, so that it drafts in these tiny worlds again and again."""

    def plan(self, limit, behind=0, left=None):
        self._account.balance = 9.0
        self._idle = 9
        return super().plan(limit, behind)


@pytest.mark.parametrize("kind", [Prefix, Optimal, Eager])
@pytest.mark.parametrize("acceptance", [rejection, match])
@pytest.mark.parametrize("table", TABLES)
def test_exact_law_of_every_rule_that_learns(kind, acceptance, table, monkeypatch):
    """Every answer has the probability of plain decoding, to 1e-12, steps dropped or not.

    The rule is made anew for each path and learns along it, so its choices depend on the past.
    """
    rows = random_rows(3, seed=5, spread=1.2)
    world = World(
        rows, agreeing_rows(rows, 0.3, seed=6, spread=1.0), Letters(3),
        sampling=Sampling(top_k=0, top_p=1, min_p=0, temperature=1.1), n_ctx=8, draft_n_ctx=8,
    )  # fmt: skip
    dropped, looked = [], []

    def make(_):
        rule = kind(TABLES[table], Calibration(memory=5.0, start_memory=3.0), 3)
        watch = rule.observe

        def observe(round):
            looked.append(bool(round.draft.steps))
            dropped.append(round.draft.steps > round.drafted)
            watch(round)

        rule.observe = observe
        return rule

    monkeypatch.setattr("tests.exact.test_lossless.make_stopping_rule", make)
    assert off_law(world, acceptance, None) < 1e-12
    assert any(looked)
    if kind is Prefix and table == "step":
        assert any(dropped)


COSTS = FixedCosts([1, 1.5, 1.9, 2.3, 2.7, 3.1, 3.5, 3.9, 4.3], 0.25 * np.arange(1, 9))


def test_a_hopeless_draft_is_left_alone():
    """Nothing survives: soon no drafts but a few trials, further and further apart."""
    rule = Optimal(COSTS, Calibration(), 8)
    seen = rounds(rule, text(0, 2000, score=2.0), COSTS)
    tried = [k for k, round in enumerate(seen) if round.draft.steps]
    assert len(tried) < 40
    assert max(b - a for a, b in zip(tried, tried[1:])) > 100  # noqa: B905, RUF007
    assert sum(round.seconds for round in seen[200:]) < 1.01 * len(seen[200:])


def test_nothing_is_spent_where_nothing_is_to_be_won():
    """Rows in proportion: a draft that is sure of itself, and wrong, costs no trial."""
    costs = FixedCosts(1.0 + 0.95 * np.arange(9), 0.02 * np.arange(1, 9))
    seen = rounds(Optimal(costs, Calibration(), 8), text(0, 100, score=5.0), costs)
    assert sum(round.seconds for round in seen) < 100.1


#: Seconds of 1, 2, ... rows, and of as many guesses as a kind of draft makes; none can win.
CANNOT_WIN = {
    "steps dearer than a pass": (1.0 + 0.02 * np.arange(13), 1.2 * np.arange(1, 13)),
    "steps that a row more makes too dear": (1.0 + 0.3 * np.arange(13), 0.8 * np.arange(1, 13)),
    "a block that wins less than its rows cost": (1.0 + 0.9 * np.arange(9), np.full(8, 1.1)),
    "three heads, the first of which reads": (1.0 + 0.4 * np.arange(4), [2.0, 2.7, 3.4]),
}


@pytest.mark.parametrize("table", CANNOT_WIN)
def test_what_cannot_win_is_hardly_tried(table):
    """Not even if it is always right: its costs may be wrong. Copies are sent as ever."""
    costs = FixedCosts(*CANNOT_WIN[table])
    seen = rounds(Optimal(costs, Calibration(), costs.limit), text(8, 2000, score=9.0), costs)
    tried = [k for k, round in enumerate(seen) if round.draft.steps]
    assert 1 <= len(tried) <= 3
    assert all(after - before > 500 for before, after in pairwise([0, *tried]))
    looking = Optimal(costs, Calibration(), costs.limit)
    rule = LookupRule(FixedCosts(1.0 + 0.1 * np.arange(13), [9.0]), Calibration.of_copies(), 12,
                      looking)  # fmt: skip
    assert rule.plan(8).take([9.0] * 8) == 8


def hardly_seen(step):
    """Costs from a disturbed profile."""
    costs = LearnedCosts()
    for rows in (1, 1, 1, 2, 4):
        costs.add_pass(rows, 0.9 + 0.1 * rows)
    costs.add_draft_step(step)
    return costs


def test_costs_that_were_hardly_seen_are_tried_only_where_they_may_win():
    """A step of more than a pass wins nothing, whatever a second row costs; half a pass may."""
    dear, cheap = (Optimal(hardly_seen(step), Calibration(), 8) for step in (1.05, 0.5))
    for rule in (dear, cheap):
        assert rule.costs.is_doubtful(2)
        rule.calibration.observe([5.0] * 8, [0.0])  # so that the policy is not to draft
        for _ in range(30):
            rule.calibration.observe([5.0], [0.0])
        rule._account.balance = 3.0
    assert not any(dear.plan(8).length for _ in range(500))
    assert cheap.plan(8).length


def test_it_comes_back_when_the_text_turns_predictable():
    """Code after 600 tokens of chat: drafting again within 150 tokens, and for good."""
    rule = Optimal(COSTS, Calibration(), 8)
    replay([text(0, 600, score=2.0)], COSTS, rule)
    assert not rule.policy.drafts
    seen = rounds(rule, text(8, 400), COSTS)
    first = next(k for k, round in enumerate(seen) if round.draft.steps)
    assert first < 150
    drafting = [bool(round.draft.steps) for round in seen[first:]]
    assert sum(drafting) > 0.7 * len(drafting)


@pytest.mark.parametrize(("step", "reads"), [(0.5, False), (0.2, True)])
def test_a_prompt_is_read_for_a_trial_only_where_drafting_is_likely_to_win(step, reads):
    """On two cores a second row costs 0.8 of a pass, 50 tokens of a prompt five passes.

    A draft of half a pass wins there only if it is nearly always right; one of a fifth often may.
    """
    costs, calibration = LearnedCosts(), Calibration()
    for rows in [1, 2, 3, 5, 9] * 8:
        costs.add_pass(rows, 1.0 + 0.8 * (rows > 1) + 0.1 * (rows - 1))
    for _ in range(8):
        costs.add_draft_step(step)
        costs.add_first_draft_step(step, 1)
        costs.add_first_draft_step(step + 50 * 0.1, 51)
    for _ in range(60):
        calibration.observe([1.0] * 8, [0.0])
    rule = Optimal(costs, calibration, 8)
    rule._account.balance, rule._idle = 9.0, 8
    assert not rule.current().drafts
    assert bool(rule.plan(8, behind=50).length) == reads
    rule._idle = 8
    assert rule.plan(8, behind=2).length  # nothing to read: a trial as ever


def test_one_slow_pass_does_not_turn_drafting_off():
    """Nor does a fast one turn it on: the forecast hardly moves."""
    costs, calibration = LearnedCosts(), Calibration()
    for _ in range(30):
        for rows in range(1, 9):
            costs.add_pass(rows, 1.0 + 0.05 * rows)
        costs.add_draft_step(0.1)
        costs.add_first_draft_step(0.1, 1)
        calibration.observe([5.0, 5.0], [1.0, 1.0])
    rule = Optimal(costs, calibration, 8)
    before = rule.forecast()
    slow = {"scores": (5.0,), "seconds": (0.1,), "draft_seconds": 0.1}
    slow = round_of((1, 2), drafted=1, accepted=1, **slow)
    rule.observe(replace(slow, seconds=50.0))
    after = rule.forecast()
    assert before.drafting > 1.3 * before.plain
    assert after.drafting > 1.25 * after.plain
    assert rule.plan(8).length == 8


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_no_plan_beyond_its_limit(limit):
    """The room in the answer is a hard bound."""
    for kind in (Prefix, Optimal):
        assert kind(COSTS, Calibration(), 8).plan(limit).length <= limit


def test_a_long_catch_up_is_weighed_against_what_is_left():
    """2,000 missed tokens for an answer of three more: not worth reading them."""
    costs, calibration = LearnedCosts(), Calibration()
    for rows in [*range(1, 9)] * 3:
        costs.add_pass(rows, 1.0)
    costs.add_draft_step(0.05)
    costs.add_first_draft_step(0.05, 1)
    costs.add_first_draft_step(0.05 + 100 * 0.02, 101)
    for _ in range(50):
        calibration.observe([5.0, 5.0, 5.0], [1.0, 1.0, 1.0])
    assert Optimal(costs, calibration, 8).plan(8, behind=1).length
    assert not Optimal(costs, calibration, 8).plan(3, behind=2000).length


def test_the_solution_is_the_best_of_all_bounds():
    """Two kinds of score, a known world: no bound on length and score does better than the policy.

    Simulated exactly by enumeration of what each bounded rule would earn.
    """
    calibration = Calibration()
    rng = np.random.default_rng(1)
    for _ in range(400):
        scores = rng.choice([0.5, 4.0], size=4)
        alive = rng.random(4) < np.where(scores > 1, 0.9, 0.3)
        tested = int(np.argmin(alive)) + 1 if not alive.all() else 4
        calibration.observe(scores.tolist(), alive[:tested].astype(float).tolist())
    target, draft = COSTS.target_seconds, COSTS.draft_seconds
    policy = solve(calibration, target, draft)
    for length in range(1, 5):
        for bound in (-1.0, 1.0):
            chains = rng.choice([0.5, 4.0], size=(4000, 4))
            tokens = seconds = 0.0
            for chain in chains:
                kept, survival, steps = 0, 1.0, 0
                for score in chain[:length]:
                    steps += 1
                    if score < bound:
                        break
                    kept += 1
                    survival *= 0.9 if score > 1 else 0.3
                    tokens += survival
                tokens += 1
                seconds += target[kept] + draft[steps - 1]
            assert tokens / seconds < 1.03 * max(policy.rate, policy.plain_rate)
