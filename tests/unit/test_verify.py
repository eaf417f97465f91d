"""Acceptance rules against the dist they promise, by walking every path of draws."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dspark_gguf.config import Speculation
from dspark_gguf.dist import Dist
from dspark_gguf.noise import Independent, Noise
from dspark_gguf.records import NO_DRAFT, Verdict
from dspark_gguf.testing import distribution_of
from dspark_gguf.verify import DistVerifier, Threshold, Typical, make_rule, match, rejection
from tests.fakes import draft_of

N_TOKENS = 4
EXACT = 1e-12


def random_law(rng):
    """Small integer weights on some of the tokens."""
    ids = np.flatnonzero(rng.random(N_TOKENS) < 0.75)
    ids = ids if len(ids) else np.array([int(rng.integers(N_TOKENS))])
    weights = rng.integers(1, 8, size=len(ids))
    return Dist(ids, weights / weights.sum())


def worlds(count=60):
    """Pairs of a target's and a draft's dist, always the same; some share no token."""
    rng = np.random.default_rng(8)
    return [(random_law(rng), random_law(rng)) for _ in range(count)]


def distance(dist, target):
    """Largest difference between a dist of results and a distribution."""
    tokens = set(dist) | set(target.ids.tolist())
    return max(abs(float(dist.get(token, 0)) - target.prob(token)) for token in tokens)


class Told:
    """A sampler that knows the dist at every place of a draft."""

    def __init__(self, dist):
        self.dist = dist

    def history(self, tokens):
        return ()

    def __call__(self, row, history, drafted, grammar=None):
        return self.dist(len(drafted))


def verify(draft, dist, rule, draws):
    """The verdict under the dist at each place."""
    return DistVerifier(Told(dist), rule, draws)(draft, [None] * (len(draft) + 1), [0])


def one_position(rule, target, draft):
    """Distribution of the token that `rule` emits for a token drawn from the draft."""
    return distribution_of(lambda rng: rule(target, draft, draft.draw(rng), Independent(rng)))


@pytest.mark.parametrize("rule", [rejection, match])
def test_lossless_rules_emit_the_targets_law(rule):
    """Exact in 60 worlds, whatever the draft proposes."""
    for target, draft in worlds():
        dist = one_position(rule, target, draft)
        assert sum(dist.values()) == 1
        assert distance(dist, target) < EXACT


def no_residual(target, draft, token, draw):
    """BIASED: a rejected token is replaced by a draw from the target itself."""
    kept = draw.coin() < min(1.0, target.prob(token) / draft.prob(token))
    return token if kept else draw.token(target)


def not_normalised(target, draft, token, draw):
    """BIASED: the residual's missing mass falls on its last token."""
    if draw.coin() < min(1.0, target.prob(token) / draft.prob(token)):
        return token
    left = np.maximum(target.probs - [draft.prob(other) for other in target.ids.tolist()], 0.0)
    place = int(np.searchsorted(left.cumsum(), draw.coin(), side="right"))
    return int(target.ids[min(place, len(left) - 1)])


def accept_always(target, draft, token, draw):
    """BIASED: the draft's dist."""
    return token


def accept_likely(target, draft, token, draw):
    """BIASED: the chance is the target's probability, not the ratio."""
    if draw.coin() < target.prob(token):
        return token
    return draw.token(target.residual(draft))


@pytest.mark.parametrize(
    "rule",
    [no_residual, not_normalised, accept_always, accept_likely, Typical(0.09, 0.3), Threshold(0.3)],
)
def test_biased_rules_are_caught(rule):
    """The same enumeration tells a wrong rule by far, so a pass above means something."""
    assert max(distance(one_position(rule, *world), world[0]) for world in worlds()) > 0.05


@pytest.mark.parametrize("rule", [rejection, match])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_whole_drafts_keep_the_law(rule, length):
    """Exact for sequences: dists that depend on every token before, drafts of 0, 1 and 3 tokens."""
    dists = Dists(seed=length)

    def emitted(rng):
        tokens = ()
        while len(tokens) < length:
            tokens += (dists.draft(tokens).draw(rng),)
        draft = draft_of(tokens, tuple(dists.draft(tokens[:k]) for k in range(length)))
        verdict = verify(draft, lambda k: dists.target(tokens[:k]), rule, Independent(rng))
        answer = (*tokens[: verdict.accepted], verdict.token)
        while len(answer) <= length:
            answer += (dists.target(answer).draw(rng),)
        return answer

    dist = distribution_of(emitted)
    for answer, probability in dist.items():
        wanted = math.prod(dists.target(answer[:k]).prob(token) for k, token in enumerate(answer))
        assert abs(float(probability) - wanted) < EXACT
    assert sum(dist.values()) == Fraction(1)


class Dists:
    """A target and a draft with dists of their own after every prefix."""

    def __init__(self, seed):
        self.seed, self.known = seed, {}

    def target(self, prefix):
        return self._law(0, prefix)

    def draft(self, prefix):
        return self._law(1, prefix)

    def _law(self, whose, prefix):
        if (whose, prefix) not in self.known:
            rng = np.random.default_rng([self.seed, whose, len(prefix), *prefix])
            self.known[whose, prefix] = random_law(rng)
        return self.known[whose, prefix]


class Certain:
    """Has no randomness: only one-point dists can be drawn."""

    def at(self, position):
        return self

    def token(self, dist):
        (token,) = dist.ids
        return int(token)


def test_nothing_after_a_rejection_is_looked_at():
    """Dists are asked for in order, once each, and none past the first rejected token."""
    asked = []

    def dist(k):
        asked.append(k)
        return Dist.point([5, 6, 0, 8][k])

    draft = draft_of((5, 6, 7))
    assert verify(draft, dist, rejection, Certain()) == Verdict(2, 0)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("rule", [rejection, match])
def test_greedy_verification_takes_no_random_number(rule):
    """One-point dists: the rules draw nothing, and the bonus token comes last."""
    draft = draft_of((5, 6))
    dists = [Dist.point(token) for token in (5, 6, 7)]
    assert verify(draft, dists.__getitem__, rule, Certain()) == Verdict(2, 7)
    assert verify(NO_DRAFT, dists.__getitem__, rule, Certain()) == Verdict(0, 5)


def test_match_draws_what_plain_decoding_draws():
    """With the same noise the emitted tokens are plain decoding's, for any draft."""
    for seed in range(200):
        dists = Dists(seed)
        plain, noise = (), Noise(seed)
        while len(plain) < 4:
            plain += (noise.at(1 + len(plain)).token(dists.target(plain)),)
        guess = tuple(np.random.default_rng(seed + 1).integers(N_TOKENS, size=3).tolist())
        draft = draft_of(guess)
        verdict = verify(draft, lambda k: dists.target(guess[:k]), match, noise)  # noqa: B023
        emitted = (*guess[: verdict.accepted], verdict.token)
        assert emitted == plain[: len(emitted)]


def test_typical_follows_medusas_bound():
    """target > min(epsilon, delta * exp(-entropy)): strictly above, and both bounds matter."""
    dist = Dist(np.array([1, 2, 3]), np.array([0.5, 0.25, 0.25]))
    at_bound = 0.25 * math.exp(dist.entropy())  # the delta at which the bound is token 3's own 0.25
    assert Typical(1.0, at_bound * 0.999)(dist, dist, 3, None) == 3
    assert Typical(1.0, at_bound * 1.001)(dist, dist, 3, Zero()) == 1
    assert Typical(0.25, 1.0)(dist, dist, 3, Zero()) == 1
    assert Typical(0.249, 1.0)(dist, dist, 3, None) == 3


class Zero:
    """Draws 0: the first token of any dist."""

    def token(self, dist):
        return int(dist.ids[0])


def test_threshold_accepts_from_its_bound_on():
    """A token with exactly the least probability stands; any less is replaced from the target."""
    two = Dist(np.array([1, 2]), np.array([0.75, 0.25]))
    assert Threshold(0.25)(two, two, 2, None) == 2
    assert Threshold(0.26)(two, two, 2, Zero()) == 1


def test_settings_name_their_rule():
    """Every acceptance of the settings has its rule, with its bounds, and only two are lossless."""
    settings = {
        name: Speculation(acceptance=name, typical_epsilon=0.2, typical_delta=0.4)
        for name in ("rejection", "match", "typical", "threshold")
    }
    assert make_rule(settings["rejection"]) is rejection
    assert make_rule(settings["match"]) is match
    assert make_rule(settings["typical"]) == Typical(0.2, 0.4)
    assert make_rule(settings["threshold"]) == Threshold(0.3)
    assert [name for name, value in settings.items() if value.lossless] == ["rejection", "match"]
