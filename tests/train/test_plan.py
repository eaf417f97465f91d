"""What is said before it starts, and at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dspark_gguf.train.plan import Job, expected, forecast
from dspark_gguf.train.report import as_text
from dspark_gguf.train.shape import Shape

#: SmolLM2-135M's.
SHAPE = Shape(
    n_vocab=49152, width=576, heads=9, kv_heads=9, head=64, feed_forward=1536, context=8192,
    epsilon=1e-5, rope_base=1e5, target_layers=(2, 9, 16, 22, 29), source_layers=(24, 29),
)  # fmt: skip
JOB = Job(Path("target.gguf"), Path("draft.gguf"), Path("work"), hours=2.0)


def test_sizes_of_a_known_draft():
    """The lab's draft had 18.0 M weights and 5.8 KB a token."""
    assert SHAPE.parameters == pytest.approx(18.0e6, rel=0.01)
    assert SHAPE.token_bytes == pytest.approx(5.8e3, rel=0.02)


def test_time_and_disk_bound_the_tokens():
    """1.2 h at 100 tokens a second, less recording; what is there counts; a full disk ends it."""
    assert "254,117 tokens" in forecast(JOB, SHAPE, 0.01, 10**9, 0)
    assert "432,000 tokens" in forecast(replace(JOB, disk=0.0), SHAPE, 0.01, 10**9, 0)
    assert "354,117 tokens" in forecast(JOB, SHAPE, 0.01, 10**9, 100_000)
    assert "100,000 tokens" in forecast(JOB, SHAPE, 0.01, 10**9, 100_000, 4320.0)
    small = replace(JOB, disk=0.5)
    assert small.room(SHAPE) == int(0.5e9 / SHAPE.token_bytes)
    assert f"{small.room(SHAPE):,} tokens" in forecast(small, SHAPE, 0.01, 10**9, 0)
    assert "disk: 0.2 GB" in forecast(replace(JOB, disk=0.0), SHAPE, 0.01, 10**9, 0)


def test_a_disk_that_would_be_full_is_told_before():
    """What is there already needs no more of it."""
    assert "disk: 1.7 GB in work, 0.7 GB more than is free: give less --disk;" in forecast(
        JOB, SHAPE, 0.01, 10**9, 0, free=10**9
    )
    assert "disk: 1.4 GB in work;" in forecast(JOB, SHAPE, 0.01, 10**9, 200_000, 4320, free=10**9)


def test_what_to_expect_is_what_the_lab_found():
    """More with more data, and never more than a home can reach."""
    assert expected(183_000) == pytest.approx(1.67)
    assert expected(100) < expected(10_000) < expected(1_000_000) <= 2.3
    assert expected(10**12) == 2.3


@pytest.mark.parametrize(("tokens", "is_said"), [(1.05, True), (1.7, False)])
def test_a_draft_that_guesses_hardly_anything(tmp_path, tokens, is_said):
    """The report says so, and what helps."""
    served = {"tokens_a_pass": tokens, "as_trained": tokens, "blocks": 300}
    values = {"served": served, "held_out": {"right": [0.1]}, "spent": {}, "curve": []}
    assert ("give it more --hours" in as_text(values, tmp_path)) == is_said
