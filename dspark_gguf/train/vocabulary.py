"""Choose the draft's vocabulary and its mask token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dspark_gguf.train.work import Conversation, Recorded

#: The size of the vocabulary is rounded up to a multiple of this.
_ROUND = 32


def choose_known(
    records: Iterable[Recorded], n_vocab: int, most: int
) -> tuple[npt.NDArray[np.int64], float]:
    """The ids with the most probability mass, ascending, and their share of the mass."""
    mass = np.zeros(n_vocab)
    for each in records:
        np.add.at(mass, each.ids.ravel(), np.exp(each.logs.astype(np.float32)).ravel())
    size = min(n_vocab, -(-min(most, n_vocab) // _ROUND) * _ROUND)
    known = np.sort(np.argsort(-mass, kind="stable")[:size])
    return known, float(mass[known].sum() / max(mass.sum(), 1e-9))


def choose_mask(
    conversations: Sequence[Conversation],
    kinds: Sequence[int],
    ends: Sequence[int],
    sizes: npt.NDArray[np.float32],
) -> int:
    """A mask token that no conversation contains: a control token if possible, else a rare one.

    `kinds` are the GGUF's token types, `sizes` the RMS of the embeddings: one near 0 is useless.
    """
    used = np.zeros(len(sizes), np.int64)
    for each in conversations:
        np.add.at(used, np.array(each.tokens), 1)
    used[list(ends)] += 1
    control = np.zeros(len(sizes), bool)
    control[: len(kinds)] = np.array(kinds) == 3
    # The last of the best: the first tokens of a vocabulary tend to have a special meaning.
    order = np.lexsort((-np.arange(len(sizes)), ~control, used, sizes <= 1e-3 * np.median(sizes)))
    return int(order[0])
