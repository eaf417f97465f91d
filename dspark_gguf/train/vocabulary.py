"""Which tokens a draft can guess, and which one stands for a token to be guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dspark_gguf.train.work import Conversation, Recorded

#: A vocabulary is padded to whole rows of so many tokens.
_ROUND = 32


def choose_known(
    records: Iterable[Recorded], n_vocab: int, most: int
) -> tuple[npt.NDArray[np.int64], float]:
    """The ids with the most of the target's probability, ascending, and their share of it."""
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
    """A token that no conversation contains: a control token if there is one, else a rare one.

    `kinds` are the GGUF's token types, `sizes` those of the embeddings: one of 0 says nothing.
    """
    used = np.zeros(len(sizes), np.int64)
    for each in conversations:
        np.add.at(used, np.array(each.tokens), 1)
    used[list(ends)] += 1
    control = np.zeros(len(sizes), bool)
    control[: len(kinds)] = np.array(kinds) == 3
    # The last of the best: the first tokens tend to have a meaning of their own.
    order = np.lexsort((-np.arange(len(sizes)), ~control, used, sizes <= 1e-3 * np.median(sizes)))
    return int(order[0])
