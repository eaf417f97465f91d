"""What a pass of several conversations verifies of their drafts, and what rounds are charged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.dist import Dist
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import SharedCosts, Source, make_stopping_rule
from dspark_gguf.together import verify_together
from tests.unit.test_shared import known


def test_steps_behind_a_copy_that_was_cut_are_paid_for():
    """They read the copy, so their tokens go with it; their seconds were spent all the same."""
    shared = SharedCosts(known())
    shared.set_count(2)
    copied = Segment.of_guesses("lookup", (5, 6, 7), (3.0,) * 3, 3)
    stepped = Segment("model", (8,), (Dist.point(8),), (3.0, 0.1), (0.1, 0.1), 4)
    tail = Segment.of_guesses("lookup", (9,), (3.0,), 0)
    whole = Draft(copied, stepped, tail)
    for count in range(6):
        cut = whole.verify(count)
        assert cut.tokens == (5, 6, 7, 8, 9)[:count]
        assert (cut.steps, cut.segments[1].caught_up) == (2, 4)
        shared.set_pass([cut, Draft()])
        steps = shared.share_of(Round((1,), draft=cut, verdict=Verdict(count, 1)))
        steps -= shared.share_of(Round((1,), verdict=Verdict(0, 1)))
        rows = shared.pass_seconds[1 + count] - shared.pass_seconds[1]
        assert steps == pytest.approx(rows + shared.step_seconds(1, 0) + shared.step_seconds(1, 1))
        told = [outcomes for *_, outcomes in cut.outcomes((5, 6, 7, 8, 9, 1))]
        assert told[0] == (1.0, 1.0, 1.0)
        assert told[1] == ((1.0,) if count >= 3 else ())


@pytest.mark.parametrize("steps", [None, Source("model", 8, Calibration())])
def test_what_was_reached_together_says_nothing_of_one_alone(steps):
    """The rate of eight is several times that of one, who would refuse all copies at that price."""
    shared = SharedCosts(known())
    copies = Source("lookup", 8, Calibration.of_copies(), is_free=True)
    rule = make_stopping_rule(Speculation(), shared, steps, copies)
    shared.set_count(8)
    rule.plan(8).take([3.0])
    for _ in range(20):
        draft = Draft(Segment.of_guesses("lookup", (1,), (3.0,), 1))
        shared.set_pass([draft] * 8)
        rule.observe(Round((1, 2), draft=draft, verdict=Verdict(1, 2)))
    over_plain = rule.rate * shared.target_seconds[0]
    assert over_plain > 1.0
    shared.set_count(1)
    assert rule.rate * shared.target_seconds[0] == pytest.approx(over_plain)


def test_who_never_drafts_keeps_nobody_from_choosing():
    """A request without speculation, between two whose drafts no longer pay in this pass."""
    shared = SharedCosts(known())
    shared.set_count(3)
    rules = [
        make_stopping_rule(Speculation(mode=mode), shared, Source("model", 8, Calibration()))
        for mode in ("auto", "off", "auto")
    ]
    unsure = Draft(Segment("model", (1, 2), (Dist.point(1),) * 2, (-9.0, -9.0), (0.1, 0.1)))
    runs = [SimpleNamespace(scheduler=rule, step=lambda draft: draft) for rule in rules]
    drafts = [unsure, Draft(), unsure]
    chosen = verify_together(cast(Any, runs), drafts, shared, 99)
    assert [len(draft) for draft in cast(Any, chosen)] == [0, 0, 0]
