"""Recorded chains: what a draft guessed at every position of a text, and how much of it was right.

A stopping rule can be tried on them without a model and without a clock. The file is an ``.npz``;
for text i = 0, 1, ...:

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dspark_gguf.arrays import NoArrays, load_arrays
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import replacing

Array = npt.NDArray[np.generic]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Copies:
    """What would be copied at every position; arrays ``[positions, longest]``, see above."""

    scores: Scores
    survived: npt.NDArray[np.bool_]

    def __iter__(self) -> Iterator[tuple[list[float], int]]:
        """`at` every position."""
        return map(self.at, range(len(self.scores)))

    def at(self, position: int) -> tuple[list[float], int]:
        """The raw scores of one copy, and how many of its tokens are right."""
        if position >= len(self.scores):
            return [], 0
        scores = self.scores[position]
        length = int(np.isfinite(scores).sum())
        return scores[:length].tolist(), int(self.survived[position].sum())


@dataclass(frozen=True, slots=True)
class Chains:
    """The chains of one text; arrays ``[positions, depth]``."""

    domain: str
    confidence: Scores
    survived: npt.NDArray[np.bool_]
    gap: Scores | None = None
    copies: Copies | None = None

    def __getitem__(self, part: slice) -> Chains:
        """A stretch of its positions."""
        gap = None if self.gap is None else self.gap[part]
        copies = self.copies and Copies(self.copies.scores[part], self.copies.survived[part])
        return Chains(self.domain, self.confidence[part], self.survived[part], gap, copies)

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
        arrays[f"confidence_{k}"] = text.confidence.astype(np.float32)
        arrays[f"survived_{k}"] = text.survived.astype(np.bool_)
        arrays[f"domain_{k}"] = np.array(text.domain)
        if text.gap is not None:
            arrays[f"gap_{k}"] = text.gap.astype(np.float32)
        if text.copies is not None:
            arrays[f"lookup_{k}"] = text.copies.scores.astype(np.float32)
            arrays[f"lookup_survived_{k}"] = text.copies.survived.astype(np.bool_)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_chains(path: Path) -> list[Chains]:
    """All texts of a file.

    Raises:
        UsageError: it holds no recorded chains.

    """
    try:
        arrays = load_arrays(path)
        texts: list[Chains] = []
        while f"confidence_{len(texts)}" in arrays:
            texts.append(_text(arrays, len(texts)))
        _require(bool(texts), "it has no confidence_0")
    except FileNotFoundError:
        raise UsageError(f"cannot read {path}: no such file", "Check the path.") from None
    except NoArrays as error:
        raise UsageError(
            f"{path} holds no recorded chains ({error})",
            "Record some with: dspark-gguf trace -o FILE.npz",
        ) from None
    return texts


def _text(arrays: dict[str, Array], k: int) -> Chains:
    confidence, survived = arrays[f"confidence_{k}"], arrays.get(f"survived_{k}")
    gap = arrays.get(f"gap_{k}")
    _require(
        survived is not None and confidence.ndim == 2 and survived.shape == confidence.shape,
        f"confidence_{k} and survived_{k} have different shapes",
    )
    _require(
        len(confidence) > 0 and bool(np.isfinite(confidence.astype(float)).all()),
        f"confidence_{k} is empty or not finite",
    )
    _require(
        gap is None or (gap.shape == confidence.shape and bool(np.isfinite(gap).all())),
        f"gap_{k} does not match confidence_{k}",
    )
    return Chains(
        str(arrays.get(f"domain_{k}", np.array("all"))),
        confidence.astype(np.float32),
        _alive(survived),
        None if gap is None else gap.astype(np.float32),
        _copies(arrays, k),
    )


def _copies(arrays: dict[str, Array], k: int) -> Copies | None:
    scores, survived = arrays.get(f"lookup_{k}"), arrays.get(f"lookup_survived_{k}")
    if scores is None:
        return None
    _require(
        survived is not None and scores.ndim == 2 and survived.shape == scores.shape,
        f"lookup_{k} and lookup_survived_{k} have different shapes",
    )
    _require(
        len(scores) == len(arrays[f"confidence_{k}"]),
        f"lookup_{k} does not match confidence_{k}",
    )
    known = np.isfinite(scores.astype(float))
    _require(
        not (known[:, 1:] > known[:, :-1]).any(), f"a copy in lookup_{k} continues after its end"
    )
    return Copies(scores.astype(np.float32), _alive(survived) & known)


def _alive(survived: Array | None) -> npt.NDArray[np.bool_]:
    """Survival is cumulative by definition; a file that marks single matches is read so, too."""
    return np.logical_and.accumulate(np.asarray(survived, dtype=np.bool_), axis=1)


def _require(fine: bool, fault: str) -> None:
    if not fine:
        raise NoArrays(fault)
