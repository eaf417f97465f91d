"""What a rejection costs where tokens cannot be taken back, and what the scheduler makes of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dspark_gguf.calibration import N_KNOTS, Calibration
from dspark_gguf.cost import FixedCosts
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.schedule import LookupRule, Optimal
from dspark_gguf.schedule.stopping import solve
from tests.fakes import round_of

LIMIT = 12
TARGET = 1.0 + 0.15 * np.arange(LIMIT + 1)
LOOKS = 0.05 * np.arange(1, LIMIT + 1)


def always(confidence):
    """A draft that is right with this probability, whatever its score."""
    knots = np.full(N_KNOTS, 1.0 / N_KNOTS)
    return SimpleNamespace(
        confidence=np.full(N_KNOTS, confidence), start=knots, follow=np.eye(N_KNOTS), tested=1e3
    )


def best_fixed(confidence, redo):
    """The best rate of drafts of a fixed length, reckoned out: (rate, length)."""
    survival = confidence ** np.arange(LIMIT + 1)
    rates = []
    for length in range(1, LIMIT + 1):
        tokens = survival[: length + 1].sum()
        again = ((survival[:length] - survival[1 : length + 1]) * redo[:length]).sum()
        rates.append(tokens / (TARGET[length] + LOOKS[length - 1] + again))
    return max(rates), int(np.argmax(rates)) + 1


@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("price", [0.0, 0.5, 1.0])
def test_the_rate_is_that_of_the_best_length(confidence, price):
    """Where each token is as sure as any other, the best policy is a length: its rate is exact."""
    redo = price * TARGET[:LIMIT]
    policy = solve(always(confidence), TARGET, LOOKS, redo_seconds=redo)
    rate, length = best_fixed(confidence, redo)
    if rate > policy.plain_rate:
        assert policy.rate == pytest.approx(rate, rel=2e-3)
        drafted, survival, more = 0, 1.0, True
        while more and drafted < LIMIT:
            keep, more, after = policy.choose(drafted + 1, 0.0, survival)
            if not keep:
                break
            drafted, survival = drafted + 1, after
        # A neighbour may be as good, up to the grid of survivals.
        assert abs(drafted - length) <= 1
    else:
        assert not policy.drafts


def test_a_dear_rejection_makes_drafting_not_worth_it():
    """The same draft pays where tokens are taken back for nothing, and not where they are not."""
    free = Optimal(FixedCosts(TARGET, LOOKS), always(0.5), LIMIT)
    dear = Optimal(FixedCosts(TARGET, LOOKS, rereads=True), always(0.5), LIMIT)
    assert free.forecast().drafting > free.forecast().plain
    assert dear.forecast().drafting < dear.forecast().plain
    assert free.plan(LIMIT).length
    assert not dear.plan(LIMIT).length


@pytest.mark.parametrize("rereads", [False, True])
def test_copies_are_chosen_with_it(rereads):
    """The number of copies with the best worth, rejections included, against all numbers."""
    costs = FixedCosts(TARGET, LOOKS, rereads=rereads)
    rule = LookupRule(costs, Calibration.of_copies(), LIMIT)
    scores = [3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    sure = rule.confidence(scores)
    survival = np.concatenate(([1.0], np.cumprod(sure)))
    worth = [
        survival[1 : count + 1].sum()
        - rule.rate * TARGET[count]
        - rule.rate * sum(
            (survival[k] - survival[k + 1]) * costs.redo_seconds[k] for k in range(count)
        )
        for count in range(len(scores) + 1)
    ]  # fmt: skip
    assert rule.plan(LIMIT).take(scores) == int(np.argmax(worth))


def test_what_is_read_again_is_not_the_passes_cost():
    """Rounds that read three tokens again before their pass teach the same figures."""
    costs = LearnedCosts()
    costs.rereads = True
    for rows in range(1, 9):
        costs.add_pass(rows, 1.0 + 0.1 * rows)
    before = costs.target_seconds[:8].copy()
    for _ in range(200):
        seconds = float(before[4] + before[2])
        costs.observe(replace(round_of((1,), drafted=4, reread=3), seconds=seconds))
    np.testing.assert_allclose(costs.target_seconds[:8], before, rtol=1e-6)
    assert costs.redo_seconds[2] == pytest.approx(before[2])
    costs.rereads = False
    assert not costs.redo_seconds.any()


def test_the_account_is_charged():
    """A rejected draft that is read again is a larger loss."""
    left = []
    for rereads in (False, True):
        rule = Optimal(FixedCosts(TARGET, LOOKS, rereads=rereads), Calibration(), LIMIT)
        rule.observe(round_of((1,), drafted=2, scores=(1.0, 1.0)))
        left.append(rule._account.balance)
    assert left[0] - left[1] == pytest.approx(TARGET[0] / TARGET[0])


def test_a_long_draft_that_fails_does_not_end_drafting():
    """It may be bad luck: a hundred rounds later there is something to spend again."""
    rule = Optimal(FixedCosts(TARGET, LOOKS), Calibration(), LIMIT)
    for _ in range(9):
        rule.observe(round_of((1,), drafted=LIMIT, scores=(1.0,) * LIMIT))
    assert rule._account.balance < 0.0
    for _ in range(100):
        rule.observe(round_of((1,)))
    assert rule._account.balance >= 0.0
