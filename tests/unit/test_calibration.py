"""From raw scores to true probabilities, on line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dspark_gguf.calibration import KNOTS, Calibration, log_odds, place_of
from tests.properties import given, settings, st

EXAMPLES = settings(deadline=None)


def told(calibration, score):
    """The probability that a score means."""
    low, part = place_of(score)
    confidence = calibration.confidence
    return confidence[low] * (1 - part) + confidence[low + 1] * part


@EXAMPLES
@given(score=st.floats(-50, 50))
def test_a_score_lies_between_its_knots(score):
    """The place of a score, turned back, is the score; beyond the ends, the end."""
    low, part = place_of(score)
    back = KNOTS[low] * (1 - part) + KNOTS[low + 1] * part
    assert 0 <= part <= 1
    assert back == pytest.approx(min(max(score, KNOTS[0]), KNOTS[-1]), abs=1e-9)


def test_it_learns_what_is_true():
    """Scores that overstate by far: after 3,000 tokens the told chance is true, to 5 points."""
    rng, calibration = np.random.default_rng(0), Calibration()
    for _ in range(3000):
        score = float(rng.choice([0.3, 2.2, 4.5]))
        calibration.observe([score], [float(rng.random() < {0.3: 0.1, 2.2: 0.4, 4.5: 0.7}[score])])
    for score, chance in ((0.3, 0.1), (2.2, 0.4), (4.5, 0.7)):
        assert told(calibration, score) == pytest.approx(chance, abs=0.05)


def test_only_what_was_tested_counts():
    """Looks whose token was never sent, or stood after a rejection, say nothing of survival."""
    one, other = Calibration(), Calibration()
    one.observe([2.0, 1.0], [1.0, 0.0])
    other.observe([2.0, 1.0, 5.0, 5.0], [1.0, 0.0])
    assert one.confidence.tolist() == other.confidence.tolist()
    assert one.tested == other.tested
    assert told(one, 5.0) == told(Calibration(), 5.0)


def test_a_full_accept_says_no_more_than_that_its_tokens_survived():
    """Censored: ten drafts of two accepted tokens are twenty survivors and no failure."""
    calibration = Calibration(memory=1e9)
    for _ in range(10):
        calibration.observe([1.0, 1.0], [1.0, 1.0])
    assert calibration.tested == pytest.approx(20)
    assert told(calibration, 1.0) > 0.9


def test_it_forgets():
    """After a memory's length of the opposite it follows the present."""
    calibration = Calibration(memory=100)
    for chance in (0.0, 1.0):
        for _ in range(400):
            calibration.observe([1.0], [chance])
    assert told(calibration, 1.0) > 0.95


def test_the_next_score_is_learned_too():
    """A chain of unsure scores after sure ones shows in the distribution of what follows."""
    calibration = Calibration()
    for _ in range(200):
        calibration.observe([9.0, -1.5], [1.0, 0.0])
    assert calibration.follow[-1, 0] > 0.9
    assert calibration.start[-1] > 0.8
    assert calibration.follow.sum(axis=1) == pytest.approx(1)


def test_kept_and_restored():
    """Through JSON and back, it goes on where it was; nonsense is refused and changes nothing."""
    one, other = Calibration(), Calibration()
    one.observe([1.0, 3.0], [1.0, 0.0])
    values = json.loads(json.dumps(one.as_dict()))
    other.restore(values)
    assert other.confidence.tolist() == one.confidence.tolist()
    for key, bad in (("survived", [1.0]), ("tested", [float("nan")] * 13), ("start", [-1.0] * 13),
                     ("survived", [1e9] * 13), ("follow", "x")):  # fmt: skip
        with pytest.raises(ValueError):
            Calibration().restore({**values, key: bad})


def test_log_odds_of_certainty_is_finite():
    """Probabilities of 0 and 1 are far out, not infinite."""
    assert log_odds(0.5) == 0
    assert -20 < log_odds(0.0) < -10 < 10 < log_odds(1.0) < 20
