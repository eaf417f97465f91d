"""Rows of one pass beside the same rows one by one.

llama.cpp picks its kernels by the number of rows: the logits differ a little, and near-ties flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.measure.check import NEAR_TIE
from dspark_gguf.sampling import margin


@dataclass(frozen=True, slots=True)
class Differences:
    """What changes with the number of rows of a pass.

    Attributes:
        depth: tokens of context.
        by_rows: number of rows -> largest difference of a logit from the single row.
        flipped: the widest gap, in logits, between the two best tokens of a single row whose best
            token changed; 0: none changed.

    """

    depth: int
    by_rows: Mapping[int, float]
    flipped: float

    @property
    def first(self) -> int | None:
        """The smallest number of rows that differ; None: they never do."""
        return next((rows for rows, most in self.by_rows.items() if most > 0.0), None)

    @property
    def most(self) -> float:
        """The largest difference of all; infinite where a logit is not finite."""
        return max(self.by_rows.values(), default=0.0)

    @property
    def is_rounding(self) -> bool:
        """Whether only near-ties flip."""
        return bool(np.isfinite(self.most)) and self.flipped <= NEAR_TIE

    def as_dict(self) -> dict[int, float | None]:
        """By rows; None, which JSON has, for infinity."""
        return {n: most if np.isfinite(most) else None for n, most in self.by_rows.items()}

    def __str__(self) -> str:
        rows = f"{min(self.by_rows)}-{max(self.by_rows)} rows"
        where = f"at {self.depth} tokens of context"
        if self.first is None:
            return f"{where} {rows} equal single rows"
        flips = f" (best tokens flip up to {self.flipped:.2f} apart)" if self.flipped else ""
        return f"{where} from {self.first} rows on by up to {self.most:.2g}{flips}"


def differences(cache: Cache, tokens: Sequence[int], depth: int, most: int = 9) -> Differences:
    """Compare passes of 2 to `most` rows with single rows, after `depth` of these tokens."""
    prefill(cache, tokens[:depth])
    alone = [cache.decode(tokens[depth + k : depth + k + 1], 1)[0].copy() for k in range(most)]
    by_rows, flipped = {}, 0.0
    for count in range(2, most + 1):
        cache.trim(depth)
        rows = cache.decode(tokens[depth : depth + count], count)
        off = [float(np.abs(rows[k] - alone[k]).max()) for k in range(count)]
        by_rows[count] = max(off) if np.isfinite(off).all() else np.inf
        for k in range(count):
            if rows[k].argmax() != alone[k].argmax():
                flipped = max(flipped, margin(alone[k]))
    cache.trim(depth)
    return Differences(depth, by_rows, flipped)
