"""Acceptance rules: which draft tokens stand, and what replaces the first that does not.

A rule looks at one position: the target's law there, the law that the draft token was drawn from,
and the token. It returns the token to emit: the draft's own (accepted) or another (rejected).

``ratio`` and ``match`` are lossless: whatever the draft proposes, the emitted token follows the
target's law. ``typical`` and ``threshold`` are not, and are never a default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dspark_gguf.config import Speculation
from dspark_gguf.dist import Dist
from dspark_gguf.records import Draft, Verdict

Rule = Callable[[Dist, Dist, int, np.random.Generator], int]


def verify(
    draft: Draft, law: Callable[[int], Dist], rule: Rule, rng: np.random.Generator
) -> Verdict:
    """Check a draft from its first token on and stop at the first rejection.

    Args:
        draft: the proposed tokens.
        law: the target's distribution at position k, asked for in order and only as far as
            needed: nothing after a rejection is normalised.
        rule: the acceptance rule.
        rng: source of the draws.

    """
    chances: list[float] = []
    for k, token in enumerate(draft.tokens):
        target = law(k)
        if rule is ratio:
            chances.append(target.prob(draft.laws[k].top))
        emitted = rule(target, draft.laws[k], token, rng)
        if emitted != token:
            return Verdict(k, emitted, tuple(chances))
    return Verdict(len(draft), law(len(draft)).draw(rng), tuple(chances))


def ratio(target: Dist, draft: Dist, token: int, rng: np.random.Generator) -> int:
    """Accept with probability min(1, target / draft), else draw from the residual.

    Lossless (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5; Chen et al. 2023, arXiv
    2302.01318, theorem 1), provided that `token` was drawn from `draft`. With one-point laws it
    is greedy verification and takes nothing from `rng`.
    """
    chance = target.prob(token) / draft.prob(token)
    if chance >= 1.0 or (chance > 0.0 and rng.random() < chance):
        return token
    return target.residual(draft).draw(rng)


def match(target: Dist, draft: Dist, token: int, rng: np.random.Generator) -> int:
    """Emit the target's own sample; the draft token is accepted if it is the same.

    Lossless for any draft. Takes from `rng` exactly what plain decoding takes, so the text with
    the same seed is that of plain decoding.
    """
    return target.draw(rng)


@dataclass(frozen=True, slots=True)
class Typical:
    """Medusa's typical acceptance. NOT lossless.

    Accept a token with ``target > min(epsilon, delta * exp(-entropy))`` (Cai et al. 2024, arXiv
    2401.10774, section 2.3.1), else draw from the target.
    """

    epsilon: float
    delta: float

    def __call__(self, target: Dist, draft: Dist, token: int, rng: np.random.Generator) -> int:
        """The token to emit."""
        bound = min(self.epsilon, self.delta * math.exp(-target.entropy()))
        return token if target.prob(token) > bound else target.draw(rng)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Accept what the target gives at least `min_prob`, else draw from it. NOT lossless."""

    min_prob: float

    def __call__(self, target: Dist, draft: Dist, token: int, rng: np.random.Generator) -> int:
        """The token to emit."""
        return token if target.prob(token) >= self.min_prob else target.draw(rng)


def name_of(rule: Rule) -> str:
    """The name by which settings call a rule."""
    return str(getattr(rule, "__name__", type(rule).__name__)).lower()


def make_rule(settings: Speculation) -> Rule:
    """The rule that `settings` name."""
    rules: dict[str, Rule] = {
        "auto": ratio,
        "ratio": ratio,
        "match": match,
        "typical": Typical(settings.typical_epsilon, settings.typical_delta),
        "threshold": Threshold(settings.accept_min_prob),
    }
    return rules[settings.acceptance]
