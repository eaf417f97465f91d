"""What the doctor measures: rows beside single rows, and alternatives beside the present one."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions, Settings, Speculation
from dspark_gguf.doctor import alternatives, measured
from dspark_gguf.doctor.measured import differences
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.testing import TableModel
from tests.fakes import rows_of

WIDE = 8


class Batched(TableModel):
    """A model whose rows change where `least` of them or more are computed together."""

    def __init__(self, least, change):
        super().__init__(lambda before: self.row(before), 64, max_rows=64)
        self.least, self.change = least, change

    def row(self, before):
        return np.arange(WIDE, dtype=np.float32) + len(before) % 3

    def decode(self, tokens, n_rows):
        rows = super().decode(tokens, n_rows)
        if not n_rows or len(tokens) < self.least:
            return rows
        return [self.change(rows[k].copy()) for k in range(n_rows)]


def raised(row):
    row[0] += 0.25
    return row


def flipped(row):
    row[0] += 100.0
    return row


def broken(row):
    row[3] = np.nan
    return row


@pytest.mark.parametrize("least", [2, 4, 9])
def test_from_how_many_rows_on(least):
    """The first number of rows that differ, and by how much; a rounding is nothing wrong."""
    found = differences(Batched(least, raised), list(range(8)) * 4, depth=5)
    assert found.first == least
    assert found.most == pytest.approx(0.25)
    assert found.is_rounding
    assert f"from {least} rows on by up to 0.25" in str(found)


def test_equal_rows():
    """Nothing differs: said so."""
    found = differences(Batched(99, raised), list(range(8)) * 4, depth=5)
    assert found.first is None
    assert found.is_rounding
    assert "2-9 rows equal single rows" in str(found)


def test_what_is_no_rounding():
    """A best token that flips across a wide gap, or a logit that is no number."""
    assert Batched(99, flipped).row([])[-1] - Batched(99, flipped).row([])[-2] == 1.0
    near = differences(Batched(4, flipped), list(range(8)) * 4, depth=5)
    assert near.flipped == 1.0  # the gap there was
    wide = Batched(4, flipped)
    wide.row = lambda before: 5.0 * np.arange(WIDE, dtype=np.float32)
    assert not differences(wide, list(range(8)) * 4, depth=5).is_rounding
    nan = differences(Batched(4, broken), list(range(8)) * 4, depth=5)
    assert not nan.is_rounding
    assert nan.as_dict()[4] is None
    assert nan.as_dict()[3] == 0.0


def time_pass(*seconds):
    """Work that takes these seconds, one after the other, again and again."""
    turns = iter(seconds * 50)
    return lambda: next(turns)


def test_a_way_is_faster_if_it_is_so_nearly_always():
    """By more than noise, in all repeats but one."""
    found = alternatives.beside(
        {
            "now": time_pass(1.0),
            "clearly": time_pass(0.5),
            "hardly": time_pass(0.95),
            "now and then": time_pass(0.2, 2.0),
            "slower": time_pass(3.0),
        },
        budget=100.0,
    )
    assert {one.name: one.is_faster for one in found} == {
        "clearly": True, "hardly": False, "now and then": False, "slower": False,
    }  # fmt: skip
    assert found[0].ratio == 0.5


def test_the_budget_ends_the_repeats():
    """With no time at all there are still enough for a median."""
    calls = []
    alternatives.beside(
        {"now": lambda: calls.append(1) or 1.0, "other": time_pass(1.0)}, budget=0.0
    )
    assert len(calls) == 4


def test_threads_that_are_tried():
    """The present number first, then the cores and half of them; no number twice."""
    assert alternatives.thread_counts(8, 4) == [8, 4, 2]
    assert alternatives.thread_counts(4, 4) == [4, 2]
    assert alternatives.thread_counts(1, 1) == [1]


def test_threads_and_attention_on_a_real_model(tiny_files, monkeypatch):
    """Each one is computed for real, the model is as before, and its weights are not freed."""
    monkeypatch.setattr(alternatives, "_BUDGET", 0.1)
    with load_pair(
        tiny_files.target, target_options=ModelOptions(n_ctx=256, threads=3, threads_batch=2)
    ) as pair:
        section = alternatives.threads(pair)
        assert section.facts["seconds_over_now"].keys() >= {"-t 3 -tb 3", "-t 1 -tb 1"}
        assert llama_cpp.llama_n_threads(pair.target_cache.pointer) == 3
        assert llama_cpp.llama_n_threads_batch(pair.target_cache.pointer) == 2
        found = alternatives.attention_timings(pair.target, measured.text_tokens(pair), 64)
        # The head of 16 numbers does not fill a block of q8_0.
        assert {one.name for one in found} <= {"-fa on", "-fa off", "-ctk q8_0 -ctv q8_0"}
        assert pair.target.options.cache_type_k == "f16"
        assert rows_of(pair.target_cache, [1])[0].shape == (pair.vocabulary.n_vocab,)


def test_what_wins_is_advised_with_its_option():
    """The fastest alone; nothing where nothing is clearly faster."""
    faster = [alternatives.Timing("-t 4", 0.8, True), alternatives.Timing("-t 2", 0.5, True)]
    (finding,) = alternatives.compare(faster, "").findings
    assert finding.hint == "Add -t 2 to your options."
    assert not finding.wrong
    assert alternatives.compare([alternatives.Timing("-t 4", 0.9, False)], "").findings == ()
    assert alternatives.compare([], "nothing").text == "nothing"


def costs_of(target, look):
    """Learned costs that say exactly this."""
    costs = LearnedCosts()
    for rows, seconds in enumerate(target, 1):
        costs.add_pass(rows, seconds)
    costs.add_draft_step(look)
    costs.add_first_draft_step(look, 1)
    return costs


def test_a_draft_that_cannot_pay_is_said(tiny_files):
    """Even if every guess were right: then the draft is what to change."""
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        pair.draft_cache()
        (finding,) = measured.speed(pair, Settings(), costs_of([0.01] * 13, 0.02)).findings
        assert not finding.wrong
        assert "too slow" in finding.problem


def test_the_speed_to_expect_and_why(tiny_files):
    """100 passes a second, a row more is free, a look takes a tenth: reckoned by hand."""
    costs = costs_of([0.01] * 13, 0.001)
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        pair.draft_cache()
        section = measured.speed(pair, Settings(), costs)
        assert section.facts["plain_tokens_per_second"] == pytest.approx(100.0)
        assert section.facts["bound"] == pytest.approx(13 / 2.2, abs=1e-3)
        assert "x5.91 if every draft token were accepted, with 12 of them a round" in section.text
        assert section.findings == ()
        assert section.facts["speedup"]["basis"] == "expected"
        calibration = pair.learned(Speculation(learn=False)).calibration("model", "match", 0.8)
        for _ in range(60):
            calibration.observe([9.0] * 4, [1.0] * 4)
        quiet = Settings(speculation=Speculation(learn=False))
        # 240 guesses, all right: the pair's own figure comes near to the bound.
        here = measured.speed(pair, quiet, costs).facts["speedup"]
        assert here["basis"] == "learned"
        assert 4.0 < here["typical"] < 5.91
    with load_pair(tiny_files.target) as pair:
        kinds = measured.speed(pair, Settings(), costs).facts["speedup"]["kinds"]
        assert kinds == {"new text": [1.0, 1.0], "copied text": [4.0, 8.0]}


def test_a_context_is_read_only_where_it_is_cheap(tiny_files):
    """A slow model is not made to read for a minute; a fast one reads enough to tell."""
    with load_pair(tiny_files.target, target_options=ModelOptions(n_ctx=1024)) as pair:
        assert measured.affordable_depth(pair, costs_of([1e-4, 1e-4], 1e-4)) == 320
        assert measured.affordable_depth(pair, costs_of([1.0, 1.0], 1.0)) == 0
    with load_pair(tiny_files.target, target_options=ModelOptions(n_ctx=128)) as pair:
        assert measured.affordable_depth(pair, costs_of([1e-4, 1e-4], 1e-4)) == 112
