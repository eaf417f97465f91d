"""Block drafts: one pass makes all guesses, so a first miss is dear, and the width is a choice."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import FixedCosts
from dspark_gguf.measure.chains import Chains
from dspark_gguf.schedule import Optimal
from tests.fakes import round_of
from tests.recorded import rounds, text


def test_a_first_block_that_falls_short_is_not_the_last():
    """A block costs more than a pass here: what there is to spend at first pays for two of them."""
    costs = FixedCosts([1, 1.5, 2, 2.5, 3, 3.25, 3.5, 3.75, 4], 1.1 + 0.04 * np.arange(8))
    short, long = text(3, 1, score=5.0), text(8, 50)
    both = (np.concatenate([getattr(short, n), getattr(long, n)]) for n in ("survived", "gap"))
    survived, gap = both
    seen = rounds(Optimal(costs, Calibration(), 8), Chains("all", gap, survived, gap), costs)
    assert seen[0].drafted > seen[0].accepted
    assert all(round.draft.steps for round in seen[:3])


def known(right, score=2.0):
    """A calibration of 400 drafts of eight, `right` of whose guesses stand in turn."""
    made = Calibration()
    for k in range(400):
        stand = right[k % len(right)]
        made.observe([score] * 8, [1.0] * stand + [0.0] * (stand < 8))
    return made


def block(costs, calibration):
    """The rule of a block draft."""
    return Optimal(costs, calibration, 8, is_block=True)


@pytest.mark.parametrize(
    ("further", "right", "width"),
    [(0.0, [0, 1, 4], 8), (0.05, [0, 1, 4], 4), (0.1, [0, 0, 1], 1), (0.1, [8, 8, 3], 8)],
)
def test_a_block_is_as_wide_as_pays(further, right, width):
    """Where each guess of it costs, few are asked for, unless nearly all are right."""
    costs = FixedCosts(1.0 + 0.06 * np.arange(9), 0.12 + further * np.arange(8))
    rule = block(costs, known(right))
    assert rule.current().drafts
    assert rule.plan(8).length == width
    assert rule.plan(2).length == min(width, 2)  # at the end of an answer


def test_less_is_spent_on_finding_out_what_is_known():
    """Scores that always meant much, in a text where they mean nothing: a pass or two are lost."""
    costs = FixedCosts(1.0 + 0.1 * np.arange(9), 0.1 * np.arange(1, 9))
    wrong = text(0, 60, score=4.0)
    new, old = (
        sum(round.seconds for round in rounds(block(costs, made), wrong, costs)) - 60.0
        for made in (Calibration(), known([8], 4.0))
    )
    assert old < 2.0 < new


@pytest.mark.parametrize("is_likely", [False, True])
def test_a_block_whose_failure_was_likely_is_bad_luck(is_likely):
    """Its scores said so: drafting goes on sooner than where they were sure."""
    costs = FixedCosts(1.0 + 0.1 * np.arange(9), 0.8 + 0.1 * np.arange(8))
    rule = block(costs, known([0, 0, 8] if is_likely else [8], 4.0))
    wrong = rounds(rule, text(0, 1, score=4.0), costs)
    assert wrong[0].drafted
    waits = 0
    while rule._account.balance < 0.0:
        rule.observe(round_of((1,)))
        waits += 1
    assert (waits < 50) == is_likely, waits
