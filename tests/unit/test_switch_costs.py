"""A pass of another number of rows than the one before it takes longer: who pays for that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dspark_gguf.learned_costs import LearnedCosts
from tests.fakes import round_of
from tests.simulated_machine import SPEEDS, Machine, Quiet

PLAIN, DRAFTED, SWITCH = 1.0, 1.5, 0.08


def play(costs, drafted, slower=lambda k: 1.0):
    """Rounds on a machine with a switch: of one row, or of four where `drafted` says so."""
    before = 1
    for k, is_drafted in enumerate(drafted):
        rows = 4 if is_drafted else 1
        seconds = (DRAFTED if is_drafted else PLAIN) + SWITCH * (rows != before)
        costs.observe(replace(round_of([7], drafted=rows - 1), seconds=seconds * slower(k)))
        before = rows
    return costs


def test_a_draft_pays_for_the_plain_pass_behind_it():
    """A plain pass is what it takes after another one; a draft in ten rounds pays twice."""
    seconds = play(LearnedCosts(), [k % 10 == 9 for k in range(2000)]).target_seconds
    assert seconds[0] == pytest.approx(PLAIN, rel=0.01)
    assert seconds[3] == pytest.approx(DRAFTED + 2 * SWITCH, rel=0.02)


def test_a_draft_behind_a_draft_does_not():
    """Where every round drafts, nothing is added to what a pass is seen to take."""
    costs = play(LearnedCosts(), [k % 10 == 9 for k in range(500)])
    assert costs.switch.charge > SWITCH / 2
    play(costs, [True] * 200)
    assert costs.switch.charge < SWITCH / 100


def test_a_busy_machine_is_no_switch():
    """What slows everything down, on and off, is not put on drafts."""
    drafted = [k % 10 == 9 for k in range(2000)]
    costs = play(LearnedCosts(), drafted, lambda k: 1.0 + 0.5 * (k // 60 % 2))
    assert costs.switch.value / costs.target_seconds[0] == pytest.approx(SWITCH, abs=0.04)


def test_it_is_kept():
    """In the learned file, and files without it are read."""
    costs, again = play(LearnedCosts(), [k % 10 == 9 for k in range(500)]), LearnedCosts()
    again.restore(costs.as_dict())
    assert again.switch.value == costs.switch.value > 0.0
    old = costs.as_dict()
    del old["switch"]
    again.restore(old)
    assert again.switch.value == 0.0


class Switching(Machine):
    """Passes of another number of rows take longer."""

    before = 1

    def of_pass(self, rows):
        switched, self.before = rows != self.before, rows
        return super().of_pass(rows) + self.speeds.pass_seconds * SWITCH * switched


@pytest.mark.parametrize("speeds", ["rig", "steep", "flat"])
def test_the_profile_measures_a_plain_pass_after_a_plain_one(speeds):
    """And how much longer it takes after another, where that shows."""
    machine = Switching(SPEEDS[speeds], Quiet())
    costs, plain = machine.profiled(30.0), SPEEDS[speeds].pass_seconds
    assert costs.target_seconds[0] == pytest.approx(plain, rel=0.05)
    assert costs.switch.value * costs.level == pytest.approx(SWITCH * plain, abs=0.06 * plain)
