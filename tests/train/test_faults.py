"""What goes wrong is said before hours of work, in words, and costs nothing that was done."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from dspark_gguf import ModelOptions
from dspark_gguf.chat.results import locked
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.train.recipe import Recipe
from dspark_gguf.train.run import Training
from dspark_gguf.train.work import Work
from tests.train.test_train import job, run

__all__ = ["job"]  # a fixture


def test_an_output_that_cannot_be_written(job, tmp_path):
    """Refused before the target is loaded."""
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        run(job(output=tmp_path / "missing/draft.gguf"))
    assert [each.name for each in (tmp_path / "work").iterdir()] == []
    with pytest.raises(UsageError, match=r"cannot write .*Is a directory"):
        run(job(output=tmp_path / "work"))
    with pytest.raises(UsageError, match=r"cannot write .*File exists"):
        run(job(work=job().prompts))


def test_a_model_that_is_read_is_not_replaced(job, tmp_path, cycle_target):
    """By its own name or through a link; the target is gone otherwise."""
    link = tmp_path / "link.gguf"
    link.symlink_to(cycle_target)
    before = cycle_target.read_bytes()
    for output in (cycle_target, link):
        with pytest.raises(UsageError, match=r"the output .* is one of the inputs"):
            run(job(output=output))
    assert cycle_target.read_bytes() == before


def test_prompts_are_read_first(job, tmp_path):
    """Not after a large target."""
    with pytest.raises(UsageError, match=r"cannot read .*none\.jsonl"):
        run(job(prompts=tmp_path / "none.jsonl"))
    assert not (tmp_path / "work").exists()


def test_one_training_at_a_time(job):
    """Two would write into each other's lines."""
    folder = job().work
    folder.mkdir()
    with (
        locked(folder / "manifest.json", ""),
        pytest.raises(UsageError, match=r"another run is writing to .*another --work folder"),
    ):
        run(job())


@pytest.mark.parametrize("words", [["--hours", "nan"], ["--hours", "inf"], ["--disk", "nan"]])
def test_what_is_no_number(words, job, dspark):
    """With nan hours it would never end."""
    wanted = job()
    done = dspark("train", "-m", wanted.target, "-o", wanted.output, *words)
    assert done.exit_code == 2
    assert f"{words[1]} is not a finite number" in done.output


def test_a_disk_for_not_even_a_token(job):
    """There is nothing to learn from, and that is said."""
    with pytest.raises(UsageError, match=r"0 conversations to learn from .* too few"):
        run(job(disk=1e-9))


@pytest.mark.parametrize("n_ctx", [8, 447])
def test_a_context_without_room_for_a_conversation(n_ctx, job):
    """llama.cpp ended the process: 16 rows are more than a batch of 8."""
    with pytest.raises(UsageError, match=f"a context of {n_ctx} has no room"):
        Training(job(), ModelOptions(n_ctx=n_ctx), str).run()


def test_a_context_that_all_conversations_share(job, monkeypatch):
    """It has room for one; trying out what a pass costs fits in too."""
    monkeypatch.setattr("dspark_gguf.train.run.SEQUENCES", 16)
    short = Recipe(anchors=64, each=32, steps=2, dropout=0.0)
    values = Training(job(max_tokens=800), ModelOptions(n_ctx=448), str, short).run()
    assert values["served"]["blocks"] > 0


def test_answers_too_short_to_keep_use_up_time_too(job, monkeypatch):
    """It ends with the hours, and says what is missing."""
    monkeypatch.setattr("dspark_gguf.train.generate._ANSWER", 3)
    with pytest.raises(UsageError, match="too few, with answers of more than 5 tokens"):
        run(job(hours=1 / 3600))


@pytest.mark.parametrize("damage", [lambda data: data[:2000], lambda data: b"", lambda data: b"x"])
def test_a_damaged_checkpoint_is_named(damage, job):
    """The conversations stay."""
    short = Recipe(anchors=64, each=32, steps=2, dropout=0.0)
    run(job(), short)
    file = job().work / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError, match=r"cannot read .*checkpoint\.pt: it is damaged. Delete it"):
        run(job(), short)
    file.unlink()
    run(job(), short)


def test_a_full_disk_while_conversations_are_kept(job, monkeypatch):
    """One message that names the file; later the same command goes on."""

    def add(work, conversation):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Work, "add", add)
        with pytest.raises(DSparkError, match=r"cannot write .*work: No space .*same command"):
            run(job())
    run(job())


def test_a_full_disk_while_learning(job, monkeypatch):
    """torch has an error of its own for it."""

    def save(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("unexpected pos 576 vs 534")

    with monkeypatch.context() as full:
        full.setattr(torch, "save", save)
        with pytest.raises(DSparkError, match=r"cannot write .*checkpoint\.pt: torch could not"):
            run(job())
    assert not list(job().work.glob(".*"))
    run(job())


def test_cooling_goes_on_where_it_stopped(job):
    """Rates that had fallen do not rise again, unless it is asked for more."""
    recipe = Recipe(anchors=64, each=32, every=1, patience=1, warm=1, dropout=0.0, steps=60)
    run(job(), recipe)
    steps = torch.load(job().work / "checkpoint.pt", weights_only=True)["step"]
    assert steps < 60  # more did not help
    values, _ = run(job(), recipe)
    assert torch.load(job().work / "checkpoint.pt", weights_only=True)["step"] == steps
    assert values["served"]["blocks"] > 0
    run(job(), Recipe(anchors=64, each=32, every=1, warm=1, patience=99, dropout=0.0, steps=90))
    assert torch.load(job().work / "checkpoint.pt", weights_only=True)["step"] == 90
