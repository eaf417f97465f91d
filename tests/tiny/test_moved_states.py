"""llama.cpp moves recurrent states of one sequence when another is read, without their snapshots.

Only the order in which sequences first came decides which ones are moved.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dspark_gguf.engine.protocol import Pass
from dspark_gguf.engine.sequence import decode_together
from tests.crowd import pair_of

TEXTS = [[10 + 7 * k + n for n in range(12)] for k in range(4)]


def said(k, count):
    return [50 + k + n for n in range(count)]


@pytest.fixture(scope="module")
def pair(files):
    with pair_of(files, "snapshots", 4, draft=False) as pair:
        yield pair


@pytest.fixture(scope="module")
def wanted(pair):
    """The row after each text and the first token that was said."""
    rows = []
    for k, cache in enumerate(pair.target_caches):
        cache.decode([*TEXTS[k], *said(k, 1)], 1)
        rows.append(cache.decode([99], 1)[0].copy())
    return rows


def begin(pair, order):
    for cache in pair.target_caches:
        cache.trim(0)
    for k in order:
        pair.target_caches[k].decode(TEXTS[k], 1)


def read(pair, lengths):
    caches = pair.target_caches
    decode_together([Pass(caches[k], said(k, n), n) for k, n in lengths.items()])


def check(pair, wanted, which):
    for k in which:
        cache = pair.target_caches[k]
        cache.trim(13)
        row = cache.decode([*TEXTS[k], *said(k, 1), 99][cache.length :], 1)[0]
        np.testing.assert_allclose(row, wanted[k], atol=1e-4)


@pytest.mark.parametrize(
    "lengths",
    [{0: 4, 1: 3, 2: 3}, {0: 4, 1: 1, 2: 4, 3: 4}, {0: 2, 1: 3, 2: 3, 3: 4}, {0: 3, 2: 3, 3: 3}],
)
def test_drafts_of_different_lengths_are_taken_back(pair, wanted, lengths):
    for order in permutations(range(4)):
        begin(pair, order)
        read(pair, lengths)
        check(pair, wanted, [k for k, n in lengths.items() if n > 1])


def test_who_was_idle_goes_back_as_far_as_ever(pair, wanted):
    for order in permutations(range(3)):
        begin(pair, order)
        read(pair, {0: 4})
        pair.target_caches[0].trim(16)  # all was right
        read(pair, {1: 3, 2: 3})
        check(pair, wanted, [0, 1, 2])
