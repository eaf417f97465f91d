"""Deep in a context attention is most of a pass: costs from its start must not decide there.

All seconds are simulated. A pass there costs `slope` passes more than near the start, and each
further row `row` of that again: all of it where attention is computed anew for each (a CPU), hardly
any where reading memory takes the time (a GPU).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspark_gguf.attention_costs import Attention
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.records import Round, Verdict
from tests.simulated import SPEEDS, TEXTS, Machine, Quiet, make_text, play, rule_of, taught

DEPTH, TOKENS = 8000, 96
#: A pass of one row costs so many more there; a further row; a draft step.
CPU, GPU = (1.2, 1.0, 0.6), (1.2, 0.0, 0.3)


def deepen(machine, slope, row, draft):
    """The same machine, deep in a context."""
    further = np.arange(len(machine.curve))
    machine.curve = machine.curve + machine.speeds.pass_seconds * slope * (1 + further * row)
    machine.speeds = replace(machine.speeds, step=machine.speeds.step + draft)


def over_plain(name, kind, seeds, place, error, behind=1):
    """Speed over plain decoding of a first answer there; guesses are wrong by `error`."""
    slope, row, draft = place
    took = plain = 0.0
    for seed in seeds:
        machine = Machine(SPEEDS[name], Quiet(seed), seed)
        costs = machine.profiled()
        costs.expect_attention(
            slope / DEPTH * error, draft / machine.speeds.step / DEPTH, row or 0.05
        )
        deepen(machine, *place)
        rule = rule_of(costs, taught(TEXTS[kind]))
        rule.observe(Round((99,), verdict=Verdict(0, 99), prefill_seconds=1.0, prompt_tokens=DEPTH))
        answer = play(rule, make_text(seed, **TEXTS[kind]), machine, TOKENS, behind=behind)
        took += answer.seconds_between(0, TOKENS)
        plain += TOKENS * machine.of_pass(1)
    return plain / took


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("machine", ["rig", "steep"])
def test_never_slower_where_each_row_pays_for_the_context(machine, error):
    """Nothing can win there; what is tried costs little, though the guess was wrong twofold."""
    ratios = {kind: over_plain(machine, kind, range(3), CPU, error) for kind in TEXTS}
    assert min(ratios.values()) >= 0.93, ratios
    assert np.mean(list(ratios.values())) >= (0.96 if error < 1.0 else 0.98), ratios


def test_a_draft_is_not_made_to_read_a_context_that_it_cannot_win_back():
    """Which is dearer there than near the start."""
    assert over_plain("rig", "good", range(3), CPU, 1.0, behind=800) >= 0.98


@pytest.mark.parametrize("error", [0.5, 2.0])
def test_it_still_wins_where_rows_share_the_reading(error):
    """As on a GPU: a pass is dear, and further rows hardly cost anything."""
    ratios = {kind: over_plain("rig", kind, range(3), GPU, error) for kind in TEXTS}
    assert ratios["good"] >= 2.0
    assert min(ratios.values()) >= 1.0, ratios


def test_the_scenario_notices_costs_that_ignore_the_context(monkeypatch):
    """Far slower than plain decoding, as it was."""
    monkeypatch.setattr(Attention, "expect", lambda *_: None)
    assert over_plain("steep", "good", range(6), CPU, 1.0) < 0.9


def deep_costs(row=1.0):
    """Seconds that are known well near the start of a context."""
    costs = LearnedCosts()
    costs.add_profile({1: 1.0, 2: 1.2, 4: 1.6}, {1, 2, 4})
    costs.add_draft_step(0.1)
    costs.expect_attention(1e-4, 2e-4, row)
    costs.attention.depth = 10_000
    return costs


def test_seconds_grow_with_the_context():
    """By what each row reads; a draft reads it in each step; nothing near its start."""
    costs = deep_costs(row=0.5)
    assert costs.target_seconds[:4] == pytest.approx([2.0, 2.7, 3.4, 4.1])
    assert costs.draft_seconds[:2] == pytest.approx([0.3, 0.6])
    assert costs.catch_up_seconds(1000) == pytest.approx(1000 * (0.1 + 0.2 * 0.95 * 0.5))
    assert costs.at_start.target_seconds[:2] == pytest.approx([1.0, 1.2])
    costs.attention.conversations = 2
    assert costs.target_seconds[:3] == pytest.approx([2.0, 3.2, 3.9])


def test_what_passes_there_take_is_learned_of_attention():
    """Not of the passes near the start: those keep their seconds, and a file keeps all of it."""
    costs = deep_costs()
    for _ in range(3):  # answers in turns
        for depth, passes in ((10_000, {1: 2.5, 2: 3.3, 4: 4.9}), (0, {1: 1.0, 2: 1.2, 4: 1.6})):
            costs.attention.begin(depth)
            for _ in range(10):
                for rows, seconds in passes.items():
                    costs.add_pass(rows, seconds)
    again = LearnedCosts()
    again.restore(costs.as_dict())
    again.expect_attention(1.0, 1.0, 1.0)  # too late: it is known
    costs.attention.depth = again.attention.depth = 10_000
    for each in (costs, again):
        assert each.target_seconds[[0, 1, 3]] == pytest.approx([2.5, 3.3, 4.9], rel=0.08)
        assert each.at_start.target_seconds[[0, 1, 3]] == pytest.approx([1.0, 1.2, 1.6], rel=0.08)


def test_a_round_says_how_deep_it_is():
    """Its first one begins after the prompt; each adds its tokens."""
    costs = deep_costs()
    costs.attention.conversations = 3
    costs.observe(Round((7,), prompt_tokens=50, prefill_seconds=1.0, seconds=1.0))
    assert (costs.attention.depth, costs.attention.conversations) == (51, 1)
    costs.observe(Round((7, 8), verdict=Verdict(1, 8), seconds=1.0))
    assert costs.attention.depth == 53
