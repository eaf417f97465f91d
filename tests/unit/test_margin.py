"""The gap between the two best logits, wherever they are."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf.sampling import margin


@pytest.mark.parametrize("best", [0, 3, 7])
@pytest.mark.parametrize("second", [0, 3, 7])
def test_the_gap_wherever_the_two_are(best, second):
    """Also at either end, and where they tie."""
    row = np.full(8, -np.inf, dtype=np.float32)
    row[2], row[second], row[best] = 1.0, 4.0, 6.5
    assert margin(row) == (6.5 - 4.0 if best != second else 5.5)
    row[5] = 6.5
    assert margin(row) == 0.0


def test_one_token_is_infinitely_better_than_none():
    """A reduced vocabulary of one: everything else is -inf."""
    row = np.full(8, -np.inf, dtype=np.float32)
    row[4] = 2.0
    assert margin(row) == np.inf
