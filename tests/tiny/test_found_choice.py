"""Of several drafts that are there, the one that should be fastest here is used."""

from __future__ import annotations

import pytest

from dspark_gguf import load_pair
from dspark_gguf.catalog import found as catalog
from dspark_gguf.catalog.found import LocalDraft, choose, find_draft
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.kinds import share_of_a_pass
from dspark_gguf.engine.model import file_stamp
from dspark_gguf.learned import Learned, learned_dir, learned_of
from tests.tiny.test_found import CYCLE, NAME, write_head
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import Eagle, write_cycle_llama, write_eagle3
from tests.tiny_heads import Made, write_mtp


def kept(target, draft, step, agreement=None, passes=(1.0, 1.05, 1.1, 1.2), starts=2):
    """What was learned of a pair: seconds of passes and of a draft step, and how many stood.

    And how often a process has begun with it: in the first two, no draft is given up.
    """
    about = {"machine": library.machine(), "target": file_stamp(target)}
    about["draft"] = draft and file_stamp(draft)
    known = Learned(learned_dir() / f"{draft and draft.stem}.json", about)
    for rows, seconds in enumerate(passes, 1):
        known.costs.add_profile({rows: seconds}, {rows})
    known.costs.profiled, known.costs.starts = 12, starts
    for _ in range(9 if draft else 0):
        known.costs.add_first_draft_step(step, 1)
        known.costs.add_draft_step(step)
    if agreement is not None:
        calibration = known.calibration("eagle3", "match", 0.0)
        for k in range(400):
            calibration.observe([2.0], [1.0 if k % 10 < 10 * agreement else 0.0])
    known.save()


@pytest.fixture
def two(shelf):
    """A target between a draft of its family and an EAGLE-3 one."""
    target = write_cycle_llama(shelf / NAME)
    return target, write_eagle3(shelf / "eagle3-a.gguf"), write_dflash(shelf / "dspark-b.gguf")


def chosen(target):
    draft, line = find_draft(target)
    return draft and draft.name, line


def test_the_fastest_here_is_chosen(two):
    """First by kind and size, then by what their guesses cost, then by how many were right."""
    target, eagle, block = two
    name, line = chosen(target)
    assert name == "dspark-b.gguf"  # one pass for all of its guesses
    assert "estimated from the sizes" in line
    assert "faster here than eagle3-a.gguf (EAGLE-3)" in line
    kept(target, block, 2.0)
    kept(target, eagle, 0.05)
    name, line = chosen(target)
    assert name == "eagle3-a.gguf"
    assert "expected from what passes cost here" in line
    kept(target, block, 0.3)
    kept(target, eagle, 0.2, agreement=0.1)
    name, line = chosen(target)
    assert name == "dspark-b.gguf"
    assert "draft tokens of this pair" in line  # of the other one
    kept(target, eagle, 0.01, agreement=0.9)
    assert chosen(target)[0] == "eagle3-a.gguf"


def test_none_that_would_win_nothing(two):
    """As measured here; a line says so, and a draft that was not measured is still tried."""
    target, eagle, block = two
    kept(target, block, 9.0)
    assert chosen(target)[0] == "eagle3-a.gguf"
    kept(target, eagle, 9.0, starts=1)  # a busy moment may have said so
    assert chosen(target)[0] == "eagle3-a.gguf"
    kept(target, eagle, 9.0)
    name, line = chosen(target)
    assert name is None
    assert line.startswith("no draft is used: ")
    assert "would win nothing here" in line
    with load_pair(target) as pair:
        assert pair.draft_cache() is None
        assert pair.found == line


def test_what_was_learned_elsewhere_does_not_count(two):
    """Of another machine, another file of this name, or in a damaged file."""
    target, eagle, _ = two
    kept(target, eagle, 0.01, agreement=1.0)
    assert chosen(target)[0] == "eagle3-a.gguf"
    assert learned_of(file_stamp(target), {"devices": []}) == []
    (learned_dir() / "damaged.json").write_bytes(b'{"about": [')
    (learned_dir() / "list.json").write_bytes(b"[]")
    assert len(learned_of(file_stamp(target), library.machine())) == 1
    write_eagle3(eagle, Eagle(random=True, own=True))  # another file
    assert chosen(target)[0] == "dspark-b.gguf"


def test_a_pair_says_of_what_it_learned(two):
    """What one start measures the next one chooses by."""
    target, eagle, _ = two
    from dspark_gguf import Speculation

    with load_pair(target, eagle) as pair:
        pair.learned(Speculation())
    [known] = learned_of(file_stamp(target), library.machine())
    assert known.about["draft"] == file_stamp(eagle)
    assert known.costs.covers(1, drafts=True)
    speedup = catalog._speedup(LocalDraft(eagle, "eagle3", ""), read_header(target), [known])
    assert speedup is None or speedup.basis == "expected"  # None: too slow, as measured


def test_a_guess_costs_what_it_reads(shelf):
    """One head and the output; of a block draft what it has and borrows; no embeddings."""
    target = read_header(write_mtp(shelf / NAME, CYCLE))
    sizes = {name: tensor.size for name, tensor in target.tensors.items()}
    head = sum(size for name, size in sizes.items() if name.startswith("blk.1."))
    whole = sum(sizes.values()) - head - sizes["token_embd.weight"]
    read = head + sizes["output.weight"]
    assert share_of_a_pass(target, target) == pytest.approx(read / whole)
    sidecar = read_header(write_head(shelf / "mtp-toy.gguf"))
    assert share_of_a_pass(sidecar, target) == pytest.approx(read / whole)
    experts = Made("glm4moe", how="cycle")
    mixture = read_header(write_mtp(shelf / "moe.gguf", experts))
    used = sum(
        one.size * (0.5 if "_exps" in name else 1.0)
        for name, one in mixture.tensors.items()
        if name.startswith("blk.1.")
    )
    assert share_of_a_pass(mixture, mixture) > used / sum(
        one.size for one in mixture.tensors.values()
    )


def test_choose_among_nothing(shelf):
    """No draft, no line."""
    target = read_header(write_cycle_llama(shelf / NAME))
    assert choose(target, []) == (None, "")
