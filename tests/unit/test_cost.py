"""Costs: what is measured is trusted, what is not never looks cheap."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dspark_gguf.cost import FixedCosts, load_table
from dspark_gguf.errors import UsageError
from dspark_gguf.learned_costs import LearnedCosts
from tests.fakes import round_of


def learned(rows=None, step=0.1):
    """Costs that have seen some numbers of rows, 20 times each."""
    costs = LearnedCosts()
    for _ in range(20):
        for count, seconds in (rows or {1: 1.0, 2: 1.2, 4: 2.0}).items():
            costs.add_pass(count, seconds)
        costs.add_draft_step(step)
        costs.add_first_draft_step(step, 1)
    return costs


def test_between_neighbours_and_as_steeply_beyond():
    """3 rows lie between 2 and 4; each row after 4 costs what the fourth did."""
    seconds = learned().target_seconds
    assert seconds[:4] == pytest.approx([1.0, 1.2, 1.6, 2.0])
    assert seconds[7] == pytest.approx(3.6)


def test_steps_stay():
    """A curve that falls from 3 to 4 rows is kept as it is."""
    seconds = learned({1: 1.0, 3: 3.17, 4: 2.64}).target_seconds
    assert seconds[2] == pytest.approx(3.17)
    assert seconds[3] == pytest.approx(2.64)


def profiled(rows, sure=()):
    """Costs after a profile, with a draft step of 0.1."""
    costs = LearnedCosts()
    costs.add_profile(rows, sure)
    costs.add_draft_step(0.1)
    return costs


def test_what_cannot_be_true_was_disturbed():
    """An hour for 1, 2 or 4 rows, a draft step or reading: bounded by what the others took."""
    true = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.5}
    for rows in true:
        seconds = profiled({**true, rows: 3600.0}).target_seconds
        assert seconds[rows - 1] < true[rows] + 4.5
        assert max(seconds[:2]) < 2.2
    costs = LearnedCosts()
    costs.add_profile(true, true)
    costs.add_draft_step(3600.0)
    costs.add_first_draft_step(3600.0, 1)
    costs.add_first_draft_step(3600.0, 64)
    assert costs.draft_seconds[0] < 3.5
    assert costs.catch_up_seconds(10) < 12.0


def test_what_was_seen_often_is_believed():
    """A third row for three passes, 20 times: however odd, the machine is like that."""
    costs = learned({1: 1.0, 2: 1.1, 3: 4.0, 4: 4.5})
    assert costs.target_seconds[2] > 3.0


def test_a_lower_observation_is_taken_at_once():
    """Alone it is the figure's; where everything was too high, the level's."""
    costs = profiled({1: 1.0, 2: 1.1, 4: 3.0}, sure=(1, 2))
    costs.add_pass(4, 1.2)
    costs.add_pass(1, 1.0)
    assert costs.target_seconds[3] < 1.5
    costs = profiled({1: 2.5, 2: 2.75, 4: 3.0}, sure=(1, 2, 4))
    for _ in range(2):
        costs.add_pass(1, 1.0)
    assert costs.target_seconds[:2] == pytest.approx([1.0, 1.2], rel=0.15)
    assert costs.draft_seconds[0] == pytest.approx(0.04, rel=0.3)


def test_a_disturbed_profile_is_told_from_an_old_one():
    """It is corrected by what is seen; what was not seen for long is not."""
    costs = LearnedCosts()
    costs.add_profile({1: 0.01, 2: 0.02}, sure={1})
    assert costs.was_disturbed
    for _ in range(2):
        costs.add_pass(2, 0.02)
    assert not costs.was_disturbed
    for _ in range(600):
        costs.add_pass(1, 0.01)
    assert costs.is_doubtful(2)
    assert not costs.was_disturbed


def test_what_was_hardly_seen_is_doubtful():
    """Once, or long ago; a figure from a file is neither, but is no longer hard to move."""
    costs = profiled({1: 1.0, 2: 1.1, 4: 3.0}, sure=(1, 2))
    assert [costs.is_doubtful(rows) for rows in (1, 2, 3, 4)] == [False, False, True, True]
    for _ in range(600):
        costs.add_pass(1, 1.0)
    assert costs.is_doubtful(2)
    assert costs.least_certain()[0] == 4
    other = LearnedCosts()
    other.restore(costs.as_dict())
    assert not other.is_doubtful(1)
    other.add_pass(1, 0.4)
    assert other.target_seconds[0] < 0.5


def test_nothing_measured_looks_cheap():
    """Without any figure, rows cost in proportion and a step as much as a pass."""
    costs = LearnedCosts()
    assert not costs.covers(1, drafts=True)
    assert costs.target_seconds[3] / costs.target_seconds[0] == pytest.approx(4)
    costs.add_pass(1, 0.5)
    assert costs.draft_seconds[:2] == pytest.approx([0.5, 1.0])


def test_one_slow_pass_hardly_moves_a_figure():
    """A hundred times too slow, once: within 15 % of what it was, and forgotten in 50 passes."""
    costs = learned()
    costs.add_pass(2, 120.0)
    assert costs.target_seconds[1] < 1.2 * 1.15
    for _ in range(50):
        costs.add_pass(1, 1.0)
        costs.add_pass(2, 1.2)
    assert costs.target_seconds[:2] == pytest.approx([1.0, 1.2], rel=0.05)


def test_a_slower_machine_is_one_factor():
    """Twice as slow passes of one row: two thirds of that is taken to be true of all, at once.

    The rest is put down to that number of rows until the others are seen.
    """
    costs = learned()
    for _ in range(40):
        costs.add_pass(1, 2.0)
    seconds = costs.target_seconds
    assert seconds[0] == pytest.approx(2.0, rel=0.05)
    assert 1.6 < seconds[3] / 2.0 < 2.0
    assert 0.16 < costs.draft_seconds[0] < 0.2


def test_rounds_are_taken_apart():
    """What is not drafting is the pass; the first step may have read more than one token."""
    costs = LearnedCosts()
    round = round_of(
        (1, 2), drafted=2, accepted=1, scores=(1.0, 2.0, 3.0), seconds=(0.3, 0.1, 0.1),
        caught_up=2, draft_seconds=0.5,
    )  # fmt: skip
    round = replace(round, seconds=2.5)
    for _ in range(5):
        costs.observe(round)
    assert costs.measured_rows == [3]
    assert costs.target_seconds[2] == pytest.approx(2.0)
    assert costs.draft_seconds[:3] == pytest.approx([0.3, 0.4, 0.5])


def test_catching_up_has_a_price():
    """A first step after many missed tokens says what reading one costs."""
    costs = learned(step=0.1)
    costs.add_first_draft_step(0.1 + 99 * 0.01, 100)
    assert costs.catch_up_seconds(50) == pytest.approx(0.5, rel=0.05)
    assert costs.catch_up_seconds(1) == 0.0


def test_kept_and_restored():
    """Through JSON and back; nonsense is refused."""
    one, other = learned(), LearnedCosts()
    values = json.loads(json.dumps(one.as_dict()))
    other.restore(values)
    assert other.target_seconds.tolist() == one.target_seconds.tolist()
    assert other.draft_seconds.tolist() == one.draft_seconds.tolist()
    figures = values["figures"]
    wrong = [{"2": [0.0, 3]}, {"0": [1.0, 3]}, {"x": [1.0, 3]}]
    bad = [{"level": 0.0}, {"level": float("nan")}, *({"figures": figures | one} for one in wrong)]
    for changes in bad:
        with pytest.raises(ValueError):
            LearnedCosts().restore(values | changes)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"target_seconds": [1, 2]}', '{"target_seconds": [], "draft_seconds": [1]}',
     '{"target_seconds": [1, -2], "draft_seconds": [1]}',
     '{"target_seconds": [0, 2], "draft_seconds": [1]}',
     '{"target_seconds": [1, 2], "draft_seconds": [2, 1]}',
     '{"target_seconds": [1, NaN], "draft_seconds": [2]}',
     '{"target_seconds": [1, 1e308], "draft_seconds": [2]}',
     '{"target_seconds": [1, 2], "draft_seconds": [1e308]}',
     '{"target_seconds": [1, "a"], "draft_seconds": [2]}'],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path, text):
    """What was needed, what was got, what to do."""
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="target_seconds"):
        load_table(path)
    with pytest.raises(UsageError, match="Check the path"):
        load_table(tmp_path / "missing.json")


def test_a_table_covers_what_both_lists_cover():
    """Five rows are at most four drafts; three steps are at most three."""
    assert FixedCosts([1, 1, 1, 1, 1], [1] * 9).limit == 4
    assert FixedCosts([1] * 9, [0.1, 0.2, 0.3]).limit == 3


def test_a_disturbed_draft_does_not_move_the_target():
    """Its first figure was twice the true one: what corrects it says nothing of passes.

    Nor does a process that begins with the figures of another, again and again.
    """
    costs = LearnedCosts()
    costs.add_profile({rows: 0.02 + 0.003 * rows for rows in range(1, 14)}, range(1, 14))
    costs.add_draft_step(0.022)
    before = costs.target_seconds[:13]
    for _ in range(5):
        costs.add_draft_step(0.010)
        assert costs.target_seconds[:13] == pytest.approx(before, rel=0.05)
        again = LearnedCosts()
        again.restore(costs.as_dict())
        costs = again
    assert costs.draft_seconds[0] == pytest.approx(0.010, rel=0.2)


def test_a_block_costs_what_its_guesses_do():
    """Narrow and whole ones tell what those between cost."""
    costs = LearnedCosts()
    costs.add_profile({1: 1.0, 2: 1.2, 4: 2.0}, {1, 2, 4})
    for _ in range(20):
        for rows, seconds in ((1, 1.0), (2, 1.2), (4, 2.0)):
            costs.add_pass(rows, seconds)
        costs.add_block(1, 0.2)
        costs.add_block(6, 0.7)
    assert costs.draft_seconds[:6] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], rel=0.02)
    for _ in range(60):
        costs.add_block(6, 1.0)
    assert costs.draft_seconds[5] == pytest.approx(1.0, rel=0.05)
    costs.add_block(6, float(costs.draft_seconds[5]) + 0.64, 64)
    assert costs.catch_up_seconds(100) == pytest.approx(1.0, rel=0.05)
