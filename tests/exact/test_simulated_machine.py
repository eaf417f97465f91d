"""A busy moment must not decide: a scheduler on a disturbed machine against the true costs.

All seconds are simulated. Stalls are what the scheduler sees, and are not counted: they would hit
anybody. `python -m tests.simulated` prints the whole table.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulated import behind, compare
from tests.simulated_machine import SPEEDS, TROUBLES, Machine, Quiet, SleepInProfile

#: A single text scatters by 5 %, whoever knows the costs: drafts are lucky or not.
BAR, LUCK = 0.95, 0.05


def mean(ratios):
    """Over all kinds of text, of the whole answer."""
    return np.mean([ratio[0] for ratio in ratios.values()])


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("machine", SPEEDS)
def test_at_most_five_per_cent_behind_the_true_costs(machine, trouble):
    """After 300 tokens, all kinds of text together; and none of them is left alone."""
    ratios = behind(machine, TROUBLES[trouble], range(2))
    assert mean(ratios) >= BAR, ratios
    assert min(ratio[0] for ratio in ratios.values()) >= BAR - 2 * LUCK, ratios


@pytest.mark.parametrize("passes", [3, 10])
@pytest.mark.parametrize("trouble", ["quiet", "stalled profile", "sleep in profile"])
@pytest.mark.parametrize("machine", ["rig", "flat", "steep"])
def test_a_short_profile_does_not_end_drafting(machine, trouble, passes):
    """Of a slow target: each figure is seen once, and a draft that fails early is bad luck.

    What is never drafted is never measured: the rest of the answer was as slow as without a draft.
    """
    both = [
        compare(machine, TROUBLES[trouble], "good", seed, passes=passes)[0] for seed in range(12)
    ]
    ratios = sorted(best / ours for ours, best in both)
    assert ratios[0] >= 0.6, ratios
    assert ratios[1] >= 0.75, ratios


def test_the_comparison_notices_costs_that_never_learn():
    """After a profile beside another process, with eyes closed: far below the bar."""

    def blind(costs):
        costs.observe = lambda seen: None
        return costs

    for trouble in ("busy profile", "stalled profile"):
        ratios = behind("rig", TROUBLES[trouble], range(2), change=blind)
        assert mean(ratios) < BAR, ratios


def test_the_comparison_is_fair():
    """On a quiet machine nobody is ahead of the true costs for long."""
    assert mean(behind("flat", Quiet, range(2))) == pytest.approx(1.0, abs=LUCK)


@pytest.mark.parametrize("at", range(1, 24))
def test_a_nap_anywhere_in_the_profile(at):
    """An hour's sleep in any of the calls of a slow target's profile: no figure is near it."""
    speeds = SPEEDS["slow"]
    costs = Machine(speeds, SleepInProfile(at=at), at).profiled(3.0)
    assert costs.target_seconds[0] < 1.5 * speeds.pass_seconds
    assert costs.target_seconds[12] < 15 * speeds.pass_seconds
    assert costs.draft_seconds[0] < 1.5 * speeds.pass_seconds
