"""Decide which draft tokens are accepted, and what replaces the first rejected one.

A `Verifier` checks a draft against the target's rows. `DistVerifier` turns them into distributions
and applies an acceptance rule to each position in turn; another verifier uses llama.cpp's own
sampler chain (``engine/chain.py``).

An acceptance rule gets the target's distribution at a position, the draft's distribution that the
token was drawn from, and the token. It returns the token to emit: the draft's (accepted) or another
one (rejected). ``rejection`` and ``match`` are lossless: whatever the draft proposes, the emitted
token follows the target's distribution. ``typical`` and ``threshold`` are not, and never a default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dspark_gguf.config import Speculation
from dspark_gguf.dist import Dist
from dspark_gguf.engine.protocol import Rows
from dspark_gguf.noise import Draw, Draws
from dspark_gguf.records import Draft, Verdict
from dspark_gguf.sampling import Follower, Sampler

Rule = Callable[[Dist, Dist, int, Draw], int]


class Verifier(Protocol):
    """Verifies the drafts of one answer, round by round."""

    def __call__(self, draft: Draft, rows: Rows, tokens: Sequence[int]) -> Verdict:
        """Check `draft` from its first token on and stop at the first rejection.

        Args:
            draft: the k proposed tokens.
            rows: the target's logits, k + 1 rows of float32 ``[n_vocab]``, read in order: after the
                committed tokens, and after each draft token.
            tokens: the committed tokens.
        """


class DistVerifier:
    """Verifies with the distributions that a sampler makes from the rows.

    `rule` decides which draft tokens are accepted; `grammar`, if any, follows every emitted token.
    """

    def __init__(
        self, sampler: Sampler, rule: Rule, draws: Draws, grammar: Follower | None = None
    ) -> None:
        self.sampler, self.rule, self.draws, self.grammar = sampler, rule, draws, grammar

    def __call__(self, draft: Draft, rows: Rows, tokens: Sequence[int]) -> Verdict:
        """See `Verifier`; rows after a rejection are not normalised."""
        history, place = self.sampler.history(tokens), len(tokens)
        last = tokens[-1]
        pairs = zip(draft.tokens, draft.dists, strict=True) if draft.tokens else ()
        for k, (token, proposed) in enumerate(pairs):
            target = self.sampler(rows[k], history, draft.tokens[:k], self.grammar)
            emitted = self.rule(target, proposed, token, self.draws.at(place + k))
            self._follow(last, emitted)
            if emitted != token:
                return Verdict(k, emitted)
            last = emitted
        target = self.sampler(rows[len(draft)], history, draft.tokens, self.grammar)
        emitted = self.draws.at(place + len(draft)).token(target)
        self._follow(last, emitted)
        return Verdict(len(draft), emitted)

    def _follow(self, last: int, token: int) -> None:
        if self.grammar is not None:
            self.grammar.follow(last, token)


def rejection(target: Dist, draft: Dist, token: int, draw: Draw) -> int:
    """Accept with probability min(1, target / draft), else draw from the residual.

    Lossless (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5; Chen et al. 2023, arXiv
    2302.01318, theorem 1), provided that `token` was drawn from `draft`. With one-point
    distributions it is greedy verification and draws nothing.
    """
    chance = target.prob(token) / draft.prob(token)
    if chance >= 1.0 or (chance > 0.0 and draw.coin() < chance):
        return token
    return draw.token(target.residual(draft))


def match(target: Dist, draft: Dist, token: int, draw: Draw) -> int:
    """Emit the target's own sample; the draft token is accepted if it is the same.

    Lossless for any draft and any stopping rule, and the same seed gives the same text. The draft
    guesses with the same noise (``noise.py``).
    """
    return draw.token(target)


@dataclass(frozen=True, slots=True)
class Typical:
    """Medusa's typical acceptance. NOT lossless.

    Accept a token with ``target > min(epsilon, delta * exp(-entropy))`` (Cai et al. 2024, arXiv
    2401.10774, section 2.3.1), else draw from the target.
    """

    epsilon: float
    delta: float

    def __call__(self, target: Dist, draft: Dist, token: int, draw: Draw) -> int:
        """The token to emit."""
        bound = min(self.epsilon, self.delta * math.exp(-target.entropy()))
        return token if target.prob(token) > bound else draw.token(target)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Accept tokens with a target probability of at least `min_prob`, else draw from the target.

    NOT lossless.
    """

    min_prob: float

    def __call__(self, target: Dist, draft: Dist, token: int, draw: Draw) -> int:
        """The token to emit."""
        return token if target.prob(token) >= self.min_prob else draw.token(target)


def make_rule(settings: Speculation) -> Rule:
    """The acceptance rule that `settings` name."""
    rules: dict[str, Rule] = {
        "rejection": rejection,
        "match": match,
        "typical": Typical(settings.typical_epsilon, settings.typical_delta),
        "threshold": Threshold(settings.accept_min_prob),
    }
    return rules[settings.acceptance]
