"""Stopping rules: how long a draft may be, decided before a token is drawn."""

from __future__ import annotations

import inspect

import pytest

from dspark_gguf.config import MAX_DRAFT, Speculation
from dspark_gguf.schedule import Bounded, Fixed, Plan, Threshold, make_stopping_rule
from tests.fakes import round_of
from tests.properties import given, settings, st

#: No clock in a test: a busy machine is no failure.
EXAMPLES = settings(deadline=None)

LENGTHS = st.integers(0, MAX_DRAFT)


@EXAMPLES
@given(length=LENGTHS, limit=LENGTHS, bound=st.floats(0, 1))
def test_no_plan_is_longer_than_its_limit(length, limit, bound):
    """The limit is the room in the answer: a longer draft would overrun the context."""
    for rule in (Fixed(length), Threshold(length, bound)):
        assert rule.plan(limit).length == min(length, limit)


def test_fixed_admits_any_row_and_threshold_a_sure_one():
    """A row at the bound is drafted, one below it is not."""
    assert Fixed(3).plan(9).admits(0.0)
    plan = Threshold(3, 0.6).plan(9)
    assert plan.admits(0.6)
    assert not plan.admits(0.5999)


@pytest.mark.parametrize("plan", [Plan, Bounded])
def test_a_plan_cannot_see_the_token(plan):
    """A decision that knew the drawn token would change the dist under `rejection`."""
    assert list(inspect.signature(plan.admits).parameters) == ["self", "score"]


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({"mode": "off"}, Bounded(0, room=20)),
        ({"draft_max": 0, "mode": "on"}, Bounded(0, 0.6, 20)),
        ({"draft_max": 5, "draft_min_prob": 0.0}, Bounded(5, room=20)),
        ({"draft_max": 5, "draft_min_prob": 0.7, "mode": "on"}, Bounded(5, 0.7, 20)),
    ],
)
def test_settings_make_the_rule(settings, plan):
    """Mode, length and bound of the settings arrive in the plan, whatever was observed."""
    rule = make_stopping_rule(Speculation(**settings))
    rule.observe(round_of((1, 2), drafted=3, accepted=1))
    assert rule.plan(20) == plan
