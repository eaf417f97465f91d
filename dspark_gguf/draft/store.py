"""Tokens of the user's own files to copy from: made once, for one vocabulary, then read-only.

The file is an uncompressed ``.npz``: ``tokens`` int32 of all texts, a -1 after each; ``pairs``
int64, the pairs of neighbours in ascending order; ``places`` int32, where the token after each of
them stands, ascending among equal pairs; ``vocabulary`` str.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dspark_gguf.arrays import NotArraysError, load_arrays
from dspark_gguf.draft.index import PLACES, Match, common
from dspark_gguf.errors import PairError, UsageError
from dspark_gguf.paths import replacing

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

#: Tokens that must match: in this much text, two would mean little.
LEAST = 3
#: After the last token of a text.
_END = -1
_WIDTH = np.int64(2**32)
#: More than the largest store takes.
_MAX_BYTES = 4 * 1024**3
_HINT = "Make one with: dspark-gguf lookup build FILES -o STORE"


class Store:
    """Texts, and where each pair of tokens stands in them, as in the file; 16 bytes a token.

    `vocabulary` is the `Vocabulary.fingerprint` of the model that they are tokens of.
    """

    def __init__(self, tokens: Int32s, pairs: Int64s, places: Int32s, vocabulary: str) -> None:
        self.tokens = array("i", tokens.astype(np.intc).tobytes())  # its items are Python's ints
        self._pairs, self._places, self.vocabulary = pairs, places, vocabulary

    @classmethod
    def of_texts(cls, texts: Iterable[Sequence[int]], most: int, vocabulary: str) -> Store:
        """A store of the first `most` tokens of all texts."""
        ids: list[int] = []
        for text in texts:
            ids += [*text, _END]
            if len(ids) > most:
                ids[most:] = [_END]
                break
        tokens = np.array(ids or [_END], dtype=np.int32)
        pairs = tokens[:-1].astype(np.int64) * _WIDTH + tokens[1:]
        inside = np.flatnonzero((tokens[:-1] != _END) & (tokens[1:] != _END))
        order = inside[np.argsort(pairs[inside], kind="stable")]
        return cls(tokens, pairs[order], (order + 2).astype(np.int32), vocabulary)

    def __len__(self) -> int:
        return len(self.tokens)

    def matches(self, known: Sequence[int]) -> list[Match]:
        """Places where the last tokens of `known` stand, the longest match first."""
        end = len(known)
        if end < LEAST:
            return []
        pair = known[-2] * int(_WIDTH) + known[-1]
        first, last = np.searchsorted(self._pairs, [pair, pair + 1]).tolist()
        places = self._places[max(first, last - PLACES) : last].tolist()
        found = [Match(place, common(self.tokens, place, known, end)) for place in places]
        found = [m for m in found if m.length >= LEAST and self.tokens[m.place] != _END]
        return sorted(found, key=lambda match: (match.length, match.place), reverse=True)

    def save(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        tokens, vocabulary = np.array(self.tokens, dtype=np.int32), np.array(self.vocabulary)
        arrays = {"pairs": self._pairs, "places": self._places}
        with replacing(path, private=True) as temporary, temporary.open("wb") as file:
            np.savez(file, tokens=tokens, vocabulary=vocabulary, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, vocabulary: str, n_vocab: int) -> Store:
        """Read what `save` wrote, for a vocabulary with this fingerprint and size.

        Another kind of file or a damaged one is a UsageError, another vocabulary a PairError.
        """
        try:
            arrays = load_arrays(path, _MAX_BYTES)
            tokens, pairs, places = (arrays[name] for name in ("tokens", "pairs", "places"))
            made_for = str(arrays["vocabulary"])
        except FileNotFoundError:
            raise UsageError(f"there is no store of texts at {path}", _HINT) from None
        except (NotArraysError, KeyError):
            raise UsageError(f"{path} is not a store of texts", _HINT) from None
        if made_for != vocabulary:
            problem = f"{path} was made with the vocabulary of another model"
            raise PairError(problem, "Build it again with -m and this model.")
        if not _is_sound(tokens, pairs, places, n_vocab):
            raise UsageError(f"the store of texts in {path} is damaged", _HINT)
        return cls(tokens, pairs, places, made_for)


def _is_sound(tokens: Int32s, pairs: Int64s, places: Int32s, n_vocab: int) -> bool:
    """Whether these are what `Store` makes of texts of this vocabulary, in its order."""
    return (
        [array.dtype for array in (tokens, pairs, places)] == [np.int32, np.int64, np.int32]
        and tokens.ndim == pairs.ndim == places.ndim == 1
        and len(tokens) > 0
        and tokens[-1] == _END
        and _END <= tokens.min() <= tokens.max() < n_vocab
        and len(pairs) == len(places)
        and (not len(places) or 2 <= places.min() <= places.max() < len(tokens))
        and np.array_equal(tokens[places - 2] * _WIDTH + tokens[places - 1], pairs)
        and bool(np.all((pairs[:-1] < pairs[1:]) | (places[:-1] < places[1:])))
        and bool(np.all(pairs[:-1] <= pairs[1:]))
    )
