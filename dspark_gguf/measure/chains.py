"""Recorded chains: a draft's guesses at every position of a text, and how many were right.

They let one try a stopping rule without a model or a clock. The file is an ``.npz``; for text
i = 0, 1, ...:

    confidence_i  float32 ``[positions, depth]``  raw score of the k-th draft token when drafting
                                                  starts at this position: its top probability
    survived_i    bool ``[positions, depth]``     this and all earlier tokens of the chain match
    domain_i      str                             what kind of text it is
    gap_i         float32 ``[positions, depth]``  optional: gap between the two best logits, which
                                                  ranks survivors better than the probability
    lookup_i     float32 ``[positions, longest]`` optional: raw scores of what would be copied from
                                                  the conversation; NaN where the copy has ended
    lookup_survived_i  bool of the same shape     this and all earlier tokens of the copy match

Recorded without a draft model, the first arrays have depth 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dspark_gguf.arrays import Bools, NotArraysError, load_arrays
from dspark_gguf.calibration import log_odds
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import replacing

Array = npt.NDArray[np.generic]
Scores = npt.NDArray[np.float32]

#: Of an array of probabilities.
odds = np.vectorize(log_odds, otypes=[np.float64])


@dataclass(frozen=True)
class Guesses:
    """Guesses at every position of a text; arrays ``[positions, longest]``, see above."""

    scores: npt.NDArray[np.floating]  # NaN after the last guess
    survived: Bools

    @cached_property
    def rows(self) -> list[tuple[list[float], int]]:
        """At every position the raw scores, and how many of the guesses are right."""
        lengths, right = np.isfinite(self.scores).sum(axis=1), self.survived.sum(axis=1)
        rows = zip(self.scores.tolist(), lengths.tolist(), right.tolist(), strict=True)
        return [(scores[:length], count) for scores, length, count in rows]

    def at(self, position: int) -> tuple[list[float], int]:
        """The same at one position; empty beyond the end."""
        return self.rows[position] if position < len(self.rows) else ([], 0)


@dataclass(frozen=True, slots=True)
class Chains:
    """The chains of one text; arrays ``[positions, depth]``."""

    domain: str
    confidence: Scores
    survived: Bools
    gap: Scores | None = None
    lookup: Guesses | None = None

    @property
    def positions(self) -> int:
        """Tokens of the text at which a draft was recorded."""
        return len(self.confidence)

    @property
    def depth(self) -> int:
        """Draft tokens of each chain."""
        return int(self.confidence.shape[1])


def save_chains(path: Path, texts: Iterable[Chains]) -> None:
    """Write all texts, compressed; the file appears whole or not at all."""
    arrays: dict[str, Array] = {}
    for k, text in enumerate(texts):
        arrays |= {f"confidence_{k}": text.confidence, f"survived_{k}": text.survived}
        arrays[f"domain_{k}"] = np.array(text.domain)
        if text.gap is not None:
            arrays[f"gap_{k}"] = text.gap
        if text.lookup is not None:
            arrays[f"lookup_{k}"] = text.lookup.scores
            arrays[f"lookup_survived_{k}"] = text.lookup.survived
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_chains(path: Path) -> list[Chains]:
    """All texts of a file; a UsageError if it holds no recorded chains."""
    try:
        arrays = load_arrays(path)
        texts: list[Chains] = []
        while f"confidence_{len(texts)}" in arrays:
            texts.append(_text(arrays, len(texts)))
        _require(bool(texts), "it has no confidence_0")
    except FileNotFoundError:
        raise UsageError(f"cannot read {path}: no such file", "Check the path.") from None
    except (NotArraysError, ValueError) as error:
        raise UsageError(
            f"{path} holds no recorded chains ({error})",
            "Record some with: dspark-gguf trace -o FILE.npz",
        ) from None
    return texts


def _text(arrays: dict[str, Array], k: int) -> Chains:
    confidence, survived = _scored(arrays, f"confidence_{k}", f"survived_{k}")
    _require(
        len(confidence) > 0 and bool(np.isfinite(confidence).all()),
        f"confidence_{k} is empty or not finite",
    )
    gap = lookup = None
    if f"gap_{k}" in arrays:
        gap = _real(arrays, f"gap_{k}").astype(np.float32)
        _require(
            gap.shape == confidence.shape and bool(np.isfinite(gap).all()),
            f"gap_{k} does not match confidence_{k}",
        )
    if f"lookup_{k}" in arrays:
        scores, right = _scored(arrays, f"lookup_{k}", f"lookup_survived_{k}")
        known = np.isfinite(scores)
        _require(len(scores) == len(confidence), f"lookup_{k} does not match confidence_{k}")
        _require(
            not (known[:, 1:] > known[:, :-1]).any(),
            f"a copy in lookup_{k} continues after its end",
        )
        lookup = Guesses(scores, right & known)
    return Chains(str(arrays.get(f"domain_{k}", "all")), confidence, survived, gap, lookup)


def _scored(arrays: dict[str, Array], scores: str, survived: str) -> tuple[Scores, Bools]:
    """Scores and what survived, two arrays of the same shape.

    Survival is cumulative by definition; a file that marks single matches is read so, too.
    """
    _require(survived in arrays, f"it has no {survived}")
    found, alive = _real(arrays, scores), _real(arrays, survived)
    _require(
        found.ndim == 2 and alive.shape == found.shape,
        f"{scores} and {survived} have different shapes",
    )
    return found.astype(np.float32), np.logical_and.accumulate(np.asarray(alive, bool), axis=1)


def _real(arrays: dict[str, Array], name: str) -> Array:
    """An array; texts, dates and complex numbers would become something else."""
    _require(arrays[name].dtype.kind in "biuf", f"{name} has no real numbers")
    return arrays[name]


def _require(fine: bool, fault: str) -> None:
    if not fine:
        raise NotArraysError(fault)
