"""The sparse distribution: exact against dense fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dspark_gguf.dist import Dist
from dspark_gguf.testing import distribution_of
from tests.properties import given, settings, st

#: No clock in a test: a busy machine is no failure.
EXAMPLES = settings(deadline=None)

WEIGHTS = st.dictionaries(st.integers(0, 7), st.integers(1, 9), min_size=1, max_size=6)


def make_dist(weights):
    """Weights per id -> a Dist, and its exact fractions."""
    ids = sorted(weights)
    total = sum(weights.values())
    exact = {token: Fraction(weights[token], total) for token in ids}
    return Dist(np.array(ids), np.array([float(exact[token]) for token in ids])), exact


class Always:
    """A generator that draws one number, as often as asked."""

    def __init__(self, number):
        self.number, self.draws = number, 0

    def random(self):
        self.draws += 1
        return self.number


@EXAMPLES
@given(WEIGHTS)
def test_probabilities_are_found_by_id(weights):
    """`prob` is the probability of a token inside and 0 of one outside, beyond either end too."""
    dist, exact = make_dist(weights)
    for token in range(-1, 9):
        assert dist.prob(token) == float(exact.get(token, 0))


@EXAMPLES
@given(WEIGHTS)
def test_a_draw_follows_the_distribution(weights):
    """Exact: the length of the part of [0, 1) that gives each token is its probability."""
    dist, exact = make_dist(weights)
    drawn = distribution_of(dist.draw)
    assert drawn.keys() == exact.keys()
    assert all(abs(drawn[token] - exact[token]) < 1e-15 for token in exact)


def test_a_draw_takes_one_number_and_none_without_a_choice():
    """`match` relies on it: with the same seed the draws are those of plain decoding."""
    rng = Always(0.5)
    make_dist({3: 1, 4: 1})[0].draw(rng)
    assert rng.draws == 1
    assert Dist.point(7).draw(rng) == 7
    assert make_dist({7: 5})[0].draw(rng) == 7
    assert rng.draws == 1


@pytest.mark.parametrize("short", [0.0, 1e-16, 1e-9])
def test_a_draw_near_one_stays_inside(short):
    """Rounding may leave the sum below 1: the largest draw still gives the last token.

    The last one that has a probability, that is.
    """
    for dist in (
        Dist(np.array([1, 5]), np.array([0.5, 0.5 - short])),
        Dist(np.array([1, 5, 9]), np.array([0.5, 0.5 - short, 0.0])),
    ):
        assert dist.draw(Always(math.nextafter(1.0, 0.0))) == 5


@pytest.mark.parametrize("number", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_a_token_of_no_probability_is_never_drawn(number):
    """Small probabilities underflow to 0 in a softmax; `rejection` divides by a drawn one's."""
    dist = Dist(np.array([1, 2, 3, 4]), np.array([0.0, 0.5, 0.5, 0.0]))
    assert dist.draw(Always(number)) in (2, 3)


@EXAMPLES
@given(WEIGHTS, WEIGHTS)
def test_the_residual_is_what_the_draft_proposes_too_little(weights, draft_weights):
    """``max(0, target - draft)``, normalised, in dense fractions; the target itself if equal."""
    (target, exact), (draft, proposed) = make_dist(weights), make_dist(draft_weights)
    left = {token: max(Fraction(0), exact[token] - proposed.get(token, 0)) for token in exact}
    mass = sum(left.values())
    residual = target.residual(draft)
    if mass == 0:
        assert residual is target
        return
    for token in range(8):
        assert abs(residual.prob(token) - left.get(token, 0) / mass) < 1e-14
    assert abs(residual.probs.sum() - 1.0) < 1e-15 * len(residual.probs)


def test_the_top_is_the_first_of_equals():
    """Ties fall to the smallest id, as in an arg-max over the row."""
    assert make_dist({9: 2, 4: 3, 6: 3})[0].top == 4
    assert Dist.point(7).top == 7


def test_entropy_in_nats():
    """ln 4 for four equal tokens; a token of probability 0 counts for nothing."""
    assert make_dist(dict.fromkeys(range(4), 1))[0].entropy() == pytest.approx(
        math.log(4), rel=1e-15
    )
    assert Dist(np.array([0, 1]), np.array([1.0, 0.0])).entropy() == 0.0
