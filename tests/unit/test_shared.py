"""The schedule of several conversations: which drafts a shared pass verifies, and who pays."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.cost import FixedCosts, load_table
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.measure.bench.conversations import COPYING
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import SharedCosts, Source, allot, make_stopping_rule
from dspark_gguf.schedule.pieces import PrefillChunks
from tests.replay_many import extended, replay_many

DATA = Path(__file__).parent.parent / "data"
STAIRS = np.array([10.0, 10.1, 10.2, 10.3, 16.0, 16.1, 16.2, 16.3, 22.0, 22.1, 22.2, 22.3])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("equal", [False, True])
def test_no_other_choice_is_worth_more(seed, equal):
    """Held against all choices, on a table with steps."""
    rng = np.random.default_rng(seed)
    chains = [np.cumprod(rng.uniform(0.3, 1.0, rng.integers(0, 4))) for _ in range(3)]
    seconds, rate, most = STAIRS + rng.uniform(0, 1, 12).cumsum(), rng.uniform(0.1, 0.4), 8

    def worth(lengths):
        tokens = sum(chain[:n].sum() for chain, n in zip(chains, lengths, strict=True))
        return tokens - rate * seconds[len(chains) + sum(lengths) - 1]

    choices = [
        lengths
        for lengths in product(*(range(len(chain) + 1) for chain in chains))
        if sum(lengths) <= most and (not equal or len(set(lengths)) == 1)
    ]
    chosen = allot(chains, seconds, rate, most, equal)
    assert tuple(chosen) in choices
    assert worth(chosen) == pytest.approx(max(map(worth, choices)))


def test_a_step_is_climbed_by_all_together():
    """No single token pays for it; so a rule that stops at the first fall would stay below."""
    chains = [np.array([0.9, 0.8, 0.7])] * 4
    assert allot(chains, STAIRS, 0.45, 8) == [2, 2, 2, 2]
    assert allot([chains[0][:1], *[np.array([])] * 3], STAIRS, 0.45, 8) == [0, 0, 0, 0]


def test_equal_chances_are_taken_from_the_front():
    sure = np.ones(3)
    assert sum(allot([sure, sure], np.linspace(1, 2, 9), 0.1, 4)) == 4


def known(step=0.1):
    costs = LearnedCosts()
    for rows, seconds in ((1, 1.0), (2, 1.2), (4, 1.6), (8, 2.4), (16, 4.0)):
        for _ in range(8):
            costs.add_pass(rows, seconds)
    for _ in range(8):
        costs.add_draft_step(step)
    return costs


def test_one_conversation_pays_what_it_always_paid():
    whole = known()
    shared = SharedCosts(whole)
    rows = len(shared.target_seconds)
    assert shared.target_seconds == pytest.approx(whole.target_seconds[:rows])
    assert shared.draft_seconds == pytest.approx(whole.draft_seconds[: rows - 1])
    assert shared.is_doubtful(1) == whole.is_doubtful(1)


def test_the_shares_of_a_pass_are_the_whole():
    shared = SharedCosts(known())
    shared.set_count(3)
    drafts = [
        Draft(Segment("model", (1, 2), (), (3.0, 3.0), (0.1, 0.1))),
        Draft(Segment("model", (), (), (0.1,), (0.1,))),
        Draft(Segment.of_guesses("lookup", (5, 6, 7), (3.0,) * 3, 3)),
    ]
    shared.set_pass(drafts)
    rounds = [Round((1,), draft=draft, verdict=Verdict(len(draft), 1)) for draft in drafts]
    steps = shared.step_seconds(2, 0) + shared.step_seconds(1, 1)
    whole = shared.whole.target_seconds[3 + 5 - 1] + steps
    assert sum(map(shared.share_of, rounds)) == pytest.approx(whole)


def test_a_step_for_several_is_learned_by_their_number():
    shared = SharedCosts(known())
    shared.set_count(4)
    guessed = shared.step_seconds(4, 1)
    assert guessed == pytest.approx(0.1 * 1.6)  # as the target's rows
    for _ in range(30):
        shared.see_draft_step(4, 1, 0.3)
    assert shared.step_seconds(4, 1) == pytest.approx(0.3, rel=0.01)
    assert shared.step_seconds(1, 1) == pytest.approx(0.1)
    separate = SharedCosts(known(), joint=False)
    assert separate.step_seconds(4, 1) == pytest.approx(0.4)


def test_blocks_of_several_are_learned_by_their_number():
    """A block is all of a draft: its seconds are those of its first steps, whatever it reads."""
    costs = known()
    for _ in range(8):
        costs.add_first_draft_step(0.25, 1)
    shared = SharedCosts(costs, is_block=True)
    shared.set_count(4)
    for _ in range(30):
        shared.see_draft_step(4, 2, 0.5)
    assert shared.step_seconds(4, 0) == pytest.approx(0.5, rel=0.01)
    assert shared.step_seconds(1, 0) == pytest.approx(0.25)
    shared.set_count(4)
    assert shared.draft_seconds[0] == pytest.approx(0.5 / 4, rel=0.01)


def test_what_a_block_reads_after_a_prompt_is_not_its_price():
    costs = known()
    for _ in range(8):
        costs.add_first_draft_step(0.25, 1)
    shared = SharedCosts(costs, is_block=True)
    before = costs.draft_seconds.tolist()
    for width in (1, 8):
        shared.see_draft_step(1, 150, 3.0, width)
        shared.see_draft_step(4, 150, 3.0, width)
    assert costs.draft_seconds.tolist() == before
    assert shared.step_seconds(4, 0) == pytest.approx(0.25 * 1.6)
    assert costs.catch_up_seconds(150) > 2.0


def test_what_cannot_win_is_not_even_tried():
    """Eight conversations: a draft step and a row cost more than a token brings."""
    shared = SharedCosts(known(step=0.8))
    rule = make_stopping_rule(Speculation(), shared, Source("model", 8, Calibration()))
    shared.set_count(8)
    assert not any(rule.plan(8).length for _ in range(500))


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("table", ["cpu-2-cores-f16", "gpu-step-at-9", "mi50-staircase"])
def test_never_slower_than_plain_batching(table, count):
    """On a recorded pair, from a cold start: learning included."""
    texts = load_chains(DATA / "chains" / "f16_q2k.npz")

    def rule_of(costs):
        return make_stopping_rule(Speculation(), costs, Source("model", 12, Calibration()))

    result = replay_many(texts, load_table(DATA / "tables" / f"{table}.json"), rule_of, count)
    assert result.over_plain >= 0.98
    if count == 1:
        assert result.over_plain >= 1.08


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "table",
    ["tables/cpu-2-cores-f16", "tables/cpu-2-cores-q8_0", "conversations/rig-f16"],
)
def test_copies_of_the_conversation_never_cost_plain_batching_anything(table, count):
    """New texts and texts that copy, from a cold start."""
    texts = load_chains(DATA / "conversations" / "copies_f16.npz")
    costs = load_table(DATA / f"{table}.json")

    def rule_of(costs):
        copies = Source("lookup", 12, Calibration.of_copies(), is_free=True)
        return make_stopping_rule(Speculation(), costs, None, copies)

    for is_copying in (False, True):
        some = [text for text in texts if (text.domain in COPYING) == is_copying]
        queue = some * (1 + 3 * count // len(some))
        speed = replay_many(queue, costs, rule_of, count).over_plain
        assert speed >= (1.09 if is_copying and count <= 4 else 0.98)


def test_a_table_goes_on_as_steep_as_it_was():
    costs = extended(FixedCosts([1.0, 1.5, 2.0], [0.1, 0.2]), 6)
    assert costs.target_seconds.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def test_pieces_are_as_large_as_patience_allows():
    pieces = PrefillChunks(known(), patience=4.0, n_batch=512)
    assert pieces.size(0) == 512  # nobody waits
    first = pieces.size(4)
    assert first == 16
    for _ in range(20):
        pieces.observe(64, 4, 1.6 + 64 * 0.01)
    assert pieces.size(4) == 128  # 1.6 + 1.28 s; twice as many would take 4.2
    assert PrefillChunks(known(), patience=0.0, n_batch=512).size(4) == 16


def test_more_conversations_than_the_table_has_rows_verify_nothing():
    half = np.array([0.9])
    assert allot([half] * 3, np.array([1.0, 1.1]), 0.0, 10) == [0, 0, 0]


def test_plain_passes_are_learned_from_later_and_all_of_them():
    """Once a pass, learning takes 1 % of it: what a plan reads stays the same object meanwhile."""
    shared = SharedCosts(known())
    shared.set_count(1, 40)
    seconds, own = shared.target_seconds, shared.whole.target_seconds
    for _ in range(15):
        shared.see_pass(1, 1.5)
        shared.set_count(1, 41)
        assert shared.target_seconds is seconds
    shared.settle()
    shared.set_count(1, 41)
    assert shared.target_seconds[0] > 1.2
    at_once = known()
    at_once.attention.depth = 32
    for _ in range(15):
        at_once.add_round(1, 1.5)
    assert shared.whole.target_seconds == pytest.approx(at_once.target_seconds)
    assert own[0] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("change", ["a draft", "the number of conversations", "a prompt"])
def test_what_changes_the_plan_is_learned_at_once(change):
    shared = SharedCosts(known())
    before = shared.whole.target_seconds[0]
    for _ in range(5):
        shared.see_pass(1, 1.5)
    assert shared.whole.target_seconds[0] == before
    if change == "a draft":
        shared.see_pass(2, 1.8)
    elif change == "a prompt":
        shared.see_prompt()
    else:
        shared.set_count(2)
    assert shared.whole.target_seconds[0] > before


def test_a_pass_without_drafts_pays_for_no_change_of_shape():
    """Of four conversations it has four rows; a draft costs the plain pass behind it as well."""
    costs = known()
    plain = SharedCosts(costs)
    plain.set_count(4)
    before = plain.pass_seconds
    costs.switch.expect(0.2, 1.0)
    charged = SharedCosts(costs)
    charged.set_count(4)
    added = charged.pass_seconds - before
    assert added[3] == 0.0
    assert added[4:32] == pytest.approx(0.2 * costs.switch.plain_after)
