"""Reading a long prompt into the draft's cache: an investment, approved and won back."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import FixedCosts
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import LookupRule, Optimal


class Reading(FixedCosts):
    """A draft that reads a token in `read` passes of the target."""

    def __init__(self, read):
        super().__init__(1.0 + 0.02 * np.arange(13), 0.05 * np.arange(1, 13))
        self.read = read

    def catch_up_seconds(self, tokens):
        return self.read * tokens if tokens > 2 else 0.0


def play(rule, behind, length, right=12, score=6.0):
    """Tokens of each round of an answer of `length`, whose drafts are right `right` times."""
    said, emitted, reads = [], 0, 0
    while emitted < length:
        left = length - emitted
        plan = rule.plan(min(left, 64) - 1, behind, left)
        scores = []
        if getattr(plan, "take", None) is not None and isinstance(rule, LookupRule):
            plan.take([])
        while len(scores) < plan.length:
            scores.append(score)
            if not plan.admits(score) or not plan.goes_on():
                break
        count = len(scores)
        accepted = min(count, right)
        tokens = (*range(accepted), 99)
        guesses = tuple(k if k < right else -1 for k in range(count))
        draft = Draft(
            Segment("model", guesses, (None,) * count, tuple(scores), (0.05,) * count, behind)
        )
        rule.observe(
            Round(tokens, draft=draft if count else Draft(), verdict=Verdict(accepted, 99))
        )
        reads += count > 0 and behind > 100
        behind = 1 if count else behind + 1
        said.append(len(tokens))
        emitted += len(tokens)
    return said, reads


def rules():
    costs = Reading(0.01)
    yield Optimal(costs, Calibration(), 12)
    yield LookupRule(costs, Calibration.of_copies(), 12, Optimal(costs, Calibration(), 12))


@pytest.mark.parametrize("rule", list(rules()), ids=["draft", "cascade"])
def test_a_long_prompt_is_read_and_drafting_goes_on(rule):
    """2,000 tokens for 20 passes, 12 tokens a pass to be had: no round of the answer waits."""
    said, _ = play(rule, 2000, 600)
    assert sum(said) / len(said) > 8


def test_not_for_a_short_answer():
    """What is left of the answer decides: 15 tokens do not pay for 20 passes, 600 do."""
    short, _ = play(Optimal(Reading(0.01), Calibration(), 12), 2000, 15)
    assert set(short) == {1}
    assert max(play(Optimal(Reading(0.01), Calibration(), 12), 2000, 600)[0]) > 1


def test_a_draft_that_wins_nothing_is_read_in_rarely():
    """The price was a mistake: it is not paid for every answer."""
    rule = Optimal(Reading(0.01), Calibration(), 12)
    answers = [play(rule, 2000, 200, right=0) for _ in range(10)]
    assert all(set(said) == {1} for said, _ in answers)
    assert sum(reads for _, reads in answers) <= 3
