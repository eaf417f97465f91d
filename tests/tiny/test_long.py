"""A long conversation costs the controller what a short one does: nothing is copied every round."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.tiny.test_scripts import script

MEASURE = script("measure_controller")


def max_memory(setting, length):
    """Bytes that the dearest of thirty rounds takes in passing."""
    made, peaks = MEASURE.decoder(*setting), []
    rounds = MEASURE.rounds(made, length, 30)
    next(rounds)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in rounds:
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return sorted(peaks)[len(peaks) // 2]


@pytest.mark.parametrize("name", MEASURE.SETTINGS)
def test_a_round_copies_no_conversation(name):
    """8000 tokens are 62 KiB of references: one copy of them would show."""
    setting = MEASURE.SETTINGS[name]
    short, long = (max_memory(setting, length) for length in (500, 8000))
    assert abs(long - short) < 16 * 1024
