"""The noise that draws: exact in distribution, the same for all who ask, and shared by drafts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspark_gguf.dist import Dist
from dspark_gguf.noise import GumbelDraw, Noise


def random_dist(rng, count, spread=2.0, n_vocab=150_000):
    """A dist of `count` tokens."""
    weights = np.exp(rng.normal(0.0, spread, count))
    return Dist(np.sort(rng.choice(n_vocab, count, replace=False)), weights / weights.sum())


def normal(observed, expected):
    """Chi-square of counts, in standard deviations from its mean."""
    kept = expected >= 5
    chi = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    return (chi - kept.sum()) / math.sqrt(2 * kept.sum())


@pytest.mark.parametrize("count", [2, 40, 3000])
def test_draws_follow_the_distribution(count):
    """Along the places of one answer, and at one place over seeds; small and large dists."""
    dist = random_dist(np.random.default_rng(count), count)
    draws = 8000 if count < 1000 else 4000
    for sources in (
        [Noise.of(5).at(k) for k in range(draws)],
        [Noise.of(seed).at(7) for seed in range(draws)],
        [Noise.of(5, answer).at(7) for answer in range(draws)],
    ):
        tokens = np.searchsorted(dist.ids, [source.token(dist) for source in sources])
        observed = np.bincount(tokens, minlength=count)
        assert abs(normal(observed, draws * dist.probs)) < 5


def test_places_and_tokens_are_independent():
    """Pairs of draws at neighbouring places, and of noise at neighbouring ids, are no closer."""
    pair = Dist(np.array([3, 4]), np.array([0.5, 0.5]))
    tokens = np.array([Noise.of(1).at(k).token(pair) for k in range(20_000)]) - 3
    for lag in (1, 2, 7):
        same = (tokens[lag:] == tokens[:-lag]).mean()
        assert abs(same - 0.5) < 5 * 0.5 / math.sqrt(len(tokens))
    numbers = GumbelDraw(12345).uniform(np.arange(20_000))
    assert numbers.min() > 0.0
    assert numbers.max() < 1.0
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 5 / math.sqrt(len(numbers))
    assert (
        abs(normal(np.bincount((16 * numbers).astype(int), minlength=16), np.full(16, 1250.0))) < 5
    )


def test_independent_draws_never_come_again():
    """Whoever asks twice goes on: a draw used again would depend on what was said."""
    noise, pair = Noise.of(3), Dist(np.arange(1000), np.full(1000, 1e-3))
    first, again = ([noise.independent().at(0).token(pair) for _ in range(9)] for _ in range(2))
    assert first != again


def test_the_same_for_all_who_ask():
    """A token has its noise whatever else can be drawn; a place has it wherever it stands."""
    many = random_dist(np.random.default_rng(1), 60)
    few = Dist(many.ids[::2], many.probs[::2] / many.probs[::2].sum())
    for k in range(200):
        token = Noise.of(9).at(k).token(many)
        if token in few.ids:
            assert Noise.of(9).at(k).token(few) == token
    noise = Noise.of(9)
    before = [noise.at(k).token(many) for k in range(20)]
    noise.move(300)
    assert [noise.at(300 + k).token(many) for k in range(20)] == before


def test_how_clearly_a_token_won():
    """The gap between the two largest perturbed log-probabilities; none beside a single token."""
    dist = random_dist(np.random.default_rng(2), 5)
    for k in range(50):
        draw = Noise.of(3).at(k)
        perturbed = np.log(dist.probs) - np.log(-np.log(draw.uniform(dist.ids)))
        second, first = np.sort(perturbed)[-2:]
        token, gap = draw.scored(dist)
        assert token == dist.ids[perturbed.argmax()]
        assert gap == pytest.approx(first - second)
    assert Noise.of(3).at(0).scored(Dist.point(8)) == (8, math.inf)


def test_a_token_without_probability_is_never_drawn():
    """The lowest temperatures leave zeros."""
    dist = Dist(np.array([1, 2, 3]), np.array([0.0, 1.0, 0.0]))
    assert {Noise.of(k).at(0).token(dist) for k in range(500)} == {2}


def test_a_draft_with_the_same_noise_agrees_as_the_theory_says():
    """P(agree) is the sum over i of 1 / (sum over j of max(p_j / p_i, q_j / q_i))."""
    rng = np.random.default_rng(4)
    target = random_dist(rng, 12)
    draft = Dist(target.ids, target.probs**0.7 * np.exp(rng.normal(0, 0.5, 12)))
    draft = Dist(draft.ids, draft.probs / draft.probs.sum())
    p, q = target.probs, draft.probs
    wanted = sum(1.0 / np.maximum(p / p[i], q / q[i]).sum() for i in range(12))
    draws = [Noise.of(seed).at(0) for seed in range(20_000)]
    agreed = np.mean([draw.token(target) == draw.token(draft) for draw in draws])
    assert agreed == pytest.approx(wanted, abs=0.02)
    distance = np.abs(p - q).sum() / 2
    assert agreed > (1 - distance) / (1 + distance)


def test_answers_and_seeds_have_noise_of_their_own():
    """The number of the answer counts; without a seed there is a new one each time."""
    keys = {Noise.of(seed, answer).key for seed in (0, 1, 2**32, 2**64 - 1) for answer in range(50)}
    assert len(keys) == 200
    assert Noise.of(None).key != Noise.of(None).key
