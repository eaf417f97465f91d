"""What was learned of a pair is kept, and never trusted blindly."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor

import pytest

from dspark_gguf.calibration import Calibration, CalibrationRecord
from dspark_gguf.learned import (
    Learned,
    forget_all,
    learned_dir,
    learned_of,
    learned_path,
    seconds_per_byte,
    temperature_class,
)


def some(path):
    """Costs and one calibration with something in them."""
    learned = Learned(path)
    for rows in (1, 2, 3):
        learned.costs.add_pass(rows, 0.1 * rows)
    learned.costs.add_draft_step(0.01)
    learned.costs.profiled = 12
    learned.calibration("model", "rejection", 0.8).observe([1.0, 2.0], [1.0, 0.0])
    return learned


def test_the_next_run_goes_on(tmp_path):
    """Costs and calibrations are there again; another temperature class has its own."""
    path = tmp_path / "pair.json"
    one = some(path)
    one.save()
    other = Learned(path)
    assert other.costs.covers(12, drafts=True)
    assert not other.costs.covers(64, drafts=True)
    assert other.costs.target_seconds.tolist() == one.costs.target_seconds.tolist()
    assert other.calibration("model", "rejection", 1.0).tested == pytest.approx(2)
    assert other.calibration("model", "rejection", 0.0).tested == 0
    assert other.calibration("model", "match", 0.8).tested == 0
    assert not other.note


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 99}', "\x00"])
def test_a_damaged_file_is_one_line_and_rewritten(tmp_path, text):
    """Truncated, foreign, of another version: nothing of it is used."""
    path = tmp_path / "pair.json"
    path.write_text(text)
    learned = some(path)
    assert str(path) in learned.note
    assert "\n" not in learned.note
    learned.save()
    assert not Learned(path).note


def test_every_cut_of_a_file_is_noticed(tmp_path):
    """A file that ends anywhere is refused as a whole."""
    path = tmp_path / "pair.json"
    some(path).save()
    whole = path.read_text()
    for cut in range(0, len(whole) - 1, 97):
        path.write_text(whole[:cut])
        learned = Learned(path)
        assert learned.note
        assert not learned.costs.covers(1, drafts=False)


def save_often(path):
    for _ in range(30):
        some(path).save()
    return True


def test_two_processes_at_once_never_corrupt_it(tmp_path):
    """Each write is whole: whoever reads, whenever, finds a good file."""
    path = tmp_path / "pair.json"
    some(path).save()
    with ProcessPoolExecutor(2) as pool:
        writers = [pool.submit(save_often, path) for _ in range(2)]
        reads = 0
        while not all(writer.done() for writer in writers):
            assert not Learned(path).note
            reads += 1
        assert all(writer.result() for writer in writers)
    assert reads
    assert [file.name for file in tmp_path.iterdir()] == ["pair.json"]


def test_anything_that_matters_makes_another_key():
    """And the same facts make the same one."""
    facts = {"target": {"file": ["a", 1], "n_ctx": 64}, "machine": "x"}
    paths = {learned_path(facts), learned_path(json.loads(json.dumps(facts)))}
    assert len(paths) == 1
    for change in ({"machine": "y"}, {"target": {"file": ["a", 2], "n_ctx": 64}}, {"draft": 1}):
        paths.add(learned_path({**facts, **change}))
    assert len(paths) == 4


def test_without_a_path_nothing_is_written(tmp_path):
    """`--no-learn`."""
    some(None).save()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(tmp_path):
    """Here it cannot even be made."""
    (tmp_path / "file").touch()
    some(tmp_path / "file" / "pair.json").save()


@pytest.mark.parametrize(
    "text",
    ['{"about": [1]}', '{"about": "x"}', "[" * 100_000],
)
def test_a_damaged_file_hides_no_other(tmp_path, monkeypatch, text):
    """Whoever looks through the folder passes it over."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = some(learned_path({}))
    good.about, good.target_bytes = {"target": ["a"], "machine": {}}, 10
    good.save()
    damaged = json.loads(good.path.read_text())
    (learned_dir() / "a.json").write_text(text)
    (learned_dir() / "b.json").write_text(json.dumps(damaged | {"target_bytes": 10**400}))
    assert good.path in [one.path for one in learned_of(["a"], {})]
    assert seconds_per_byte({}) == pytest.approx(0.01)


def test_a_file_name_that_is_not_text(tmp_path, monkeypatch):
    """What is learned of such a model is kept, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    about = {"target": ["caf\udce9.gguf", 1], "machine": {}}
    one = some(learned_path(about))
    one.about = about
    one.save()
    [kept] = learned_of(about["target"], {})
    assert not kept.note
    assert kept.costs.covers(12, drafts=True)


def test_forget_all(tmp_path, monkeypatch):
    """Every pair's file is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert forget_all() == 0
    for name in ("a", "b"):
        some(learned_path({"name": name})).save()
    assert forget_all() == 2
    assert not list(learned_dir().glob("*"))


def test_temperature_classes():
    """Greedy is its own world."""
    classes = [temperature_class(t) for t in (0.0, 0.3, 0.8, 1.0, 1.5)]
    assert classes == ["greedy", "cool", "warm", "warm", "hot"]


def test_begins_with_what_the_draft_brings():
    """Of drafts alone, under the rule that it was counted with; what is learned here goes on."""
    brought, learned = Calibration(), Learned()
    brought.observe([4.0, 1.0], [1.0, 0.0])
    learned.of_file = CalibrationRecord.model_validate(brought.as_dict())
    known = learned.calibration("block", "match", 0.8)
    assert known.as_dict() == brought.as_dict()
    known.observe([4.0], [1.0])
    assert learned.calibration("block", "match", 0.0) is known
    assert learned.calibration("block", "rejection", 0.8).tested == 0.0
    assert learned.calibration("lookup", "match", 0.0, is_free=True).tested == 0.0
