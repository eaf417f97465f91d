"""Tokens per pass on held-out conversations, simulated as they would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dspark_gguf.train.batches import Batches
from dspark_gguf.train.network import Network


class Walk(NamedTuple):
    """`tokens` in so many `passes`; guesses `reached` and `right` at each position [block]."""

    tokens: int
    passes: int
    right: tuple[int, ...]
    reached: tuple[int, ...]

    @property
    def tokens_a_pass(self) -> float:
        """1 if every first guess is wrong."""
        return self.tokens / self.passes if self.passes else 1.0

    @property
    def shares(self) -> list[float]:
        """Share of right guesses by position, where all earlier ones were right."""
        return [round(r / max(1, n), 3) for r, n in zip(self.right, self.reached, strict=True)]


@torch.no_grad()
def evaluate(network: Network, batches: Batches, ks: Sequence[int], autocast: Any) -> Walk:
    """Greedy answers: a guess is accepted where it is the target's likeliest token."""
    network.eval()
    size = network.shape.block
    tokens = passes = 0
    right, reached = np.zeros(size, int), np.zeros(size, int)
    for k in ks:
        batch = batches.served(k)
        with autocast():
            hidden = network(batch.anchors)
        ids, _ = network.guess(hidden.float(), batch.anchors.tokens)
        good = ((ids == batch.best) & batch.valid)[0].cpu().numpy()
        run = np.cumprod(good, 1).astype(bool)
        asked = np.concatenate([np.ones((len(run), 1), bool), run[:, :-1]], 1)
        asked &= batch.valid[0].cpu().numpy()
        right, reached = right + run.sum(0), reached + asked.sum(0)
        made, walked = walk(run.sum(1))
        tokens, passes = tokens + made, passes + walked
    network.train()
    return Walk(tokens, passes, tuple(right.tolist()), tuple(reached.tolist()))


def walk(accepted: np.ndarray) -> tuple[int, int]:
    """Tokens and passes, given how many guesses are accepted at each position of a text [n]."""
    place = passes = tokens = 0
    while place < len(accepted):
        step = min(int(accepted[place]) + 1, len(accepted) - place)
        place, tokens, passes = place + step, tokens + step, passes + 1
    return tokens, passes
