"""What speed to expect of a pair that has not drafted yet."""

from __future__ import annotations

from fractions import Fraction

import pytest

from dspark_gguf.schedule.expected import (
    CHAT_AGREEMENT,
    CODE_AGREEMENT,
    expected_ranges,
    expected_speedup,
    likely_saving,
    ranges_text,
)
from tests.properties import given, settings, st

EXAMPLES = settings(deadline=None)
SECONDS = st.floats(1e-3, 10.0)
AGREEMENT = st.floats(0.0, 1.0)


def by_hand(target, steps, agreement):
    """The best of all fixed lengths, with exact fractions: tokens a second over those of plain."""
    rates = [Fraction(1) / Fraction(target[0])]
    for length in range(1, min(len(target) - 1, len(steps)) + 1):
        tokens = sum(Fraction(agreement) ** k for k in range(length + 1))
        rates.append(tokens / (Fraction(target[length]) + Fraction(steps[length - 1])))
    best = max(rates)
    return float(best / rates[0]), rates.index(best)


def test_it_is_what_one_reckons_by_hand():
    """Half of the guesses survive, a step takes a tenth, a row more is free: 1.75 tokens in 1.2."""
    speedup, length = expected_speedup([1.0, 1.0, 1.0], [0.1, 0.2], 0.5)
    assert length == 2
    assert speedup == pytest.approx(1.75 / 1.2)


@EXAMPLES
@given(
    target=st.lists(SECONDS, min_size=1, max_size=9),
    steps=st.lists(st.floats(0.0, 3.0), max_size=9),
    agreement=AGREEMENT,
)
def test_it_is_the_best_of_all_lengths(target, steps, agreement):
    """On any table, jagged ones too, whichever list is longer; never below plain decoding."""
    steps = [sum(steps[: k + 1]) for k in range(len(steps))]
    speedup, length = expected_speedup(target, steps, agreement)
    assert speedup == pytest.approx(by_hand(target, steps, agreement)[0])
    assert 0 <= length <= min(len(target) - 1, len(steps))
    assert speedup >= 1.0


def test_a_draft_that_is_no_cheaper_is_not_used():
    """Even if it is always right."""
    assert expected_speedup([1.0, 2.0, 3.0], [1.0, 2.0], 1.0) == (1.0, 0)


def test_a_block_costs_the_same_for_every_length():
    """One pass guesses all: with sure guesses the longest one wins."""
    speedup, length = expected_speedup([1.0] * 8, [0.25] * 7, 1.0)
    assert (speedup, length) == (pytest.approx(8 / 1.25), 7)


def test_ranges_by_kind_of_text():
    """From the least to the most agreeable text of each kind; code agrees more than chat."""
    target, steps = [1.0, 1.1, 1.2, 1.3], [0.2, 0.4, 0.6]
    ranges = expected_ranges(target, steps)
    for kind, usual in (("code", CODE_AGREEMENT), ("chat", CHAT_AGREEMENT)):
        assert ranges[kind] == tuple(expected_speedup(target, steps, a)[0] for a in usual)
        assert ranges[kind][0] < ranges[kind][1]
    assert ranges["chat"][0] < ranges["code"][0]


def test_as_text():
    """One decimal; a range that is none is one number."""
    assert ranges_text({"code": (1.41, 2.09), "chat": (1.0, 1.22)}) == (
        "code 1.4-2.1x, chat 1.0-1.2x"
    )
    assert ranges_text({"chat": (1.0, 1.04)}) == "chat 1.0x"


def test_the_likely_saving_is_what_trying_may_cost():
    """Where only near certain drafts pay, nothing; where rows are free, most of the time."""
    rows = [1.0 + 0.95 * k for k in range(13)]
    assert likely_saving(rows, [0.05 * k for k in range(1, 13)]) == 0.0
    assert likely_saving([1.0] * 13, [0.01 * k for k in range(1, 13)]) > 0.6
    halved = 1.0 - 1.0 / expected_speedup([1.0, 1.0], [0.0], 0.6)[0]
    assert likely_saving([1.0, 1.0], [0.0]) > halved
