"""Downloads that break off, are spoilt or do not fit: never taken for the model."""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path
from threading import Event

import pytest

from dspark_gguf import hub
from dspark_gguf.errors import ResourceError
from tests.children import ENDING, PATIENCE, PROGRAM, run, run_python, started
from tests.fake_hub import serving

#: huggingface_hub writes what it gets in pieces of 10 MiB.
PIECE = 10 * 1024 * 1024


@pytest.fixture
def large(tmp_path):
    """Two pieces and a half, nothing of it alike."""
    path = tmp_path / "large-Q8_0.gguf"
    path.write_bytes(b"GGUF" + bytes(range(251)) * (5 * PIECE // 2 // 251))
    return path


def test_a_broken_connection(large, tmp_path):
    """The rest is asked for, and only the rest is sent."""
    size = large.stat().st_size
    with serving({"org/m-GGUF": {large.name: large}}, cuts=[2 * PIECE + 100]) as there:
        done = there.run(tmp_path / "home", "pull", "org/m-GGUF:Q8_0")
        assert done.returncode == 0, done.stderr
        assert there.sent == [
            (large.name, 0, 2 * PIECE + 100),
            (large.name, 2 * PIECE, size - 2 * PIECE),
        ]
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows")
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_an_interrupted_download(large, tmp_path, end):
    """Ctrl-C, or worse: what came of the file is never taken for the model."""
    home, size = tmp_path / "home", large.stat().st_size
    words = ("pull", "org/m-GGUF")
    with serving({"org/m-GGUF": {large.name: large}}, stalls=[2 * PIECE + 100]) as there:
        with started(*words, env=there.environment(home), text=True) as first:
            assert there.stalled.wait(PATIENCE)
            _until_written(home, 2 * PIECE)
            first.send_signal(getattr(signal, end))
            _, said = first.communicate(timeout=ENDING)
        if end == "SIGINT":
            assert first.returncode == 130
            assert "complete files are kept" in said
            assert not list(home.rglob("*.incomplete"))
        done = there.run(home, *words)
        assert done.returncode == 0, done.stderr
        assert there.sent == [(large.name, 0, size)]
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


def _until_written(home, size):
    """Wait until the process has written what it got."""
    for _ in range(600):
        if any(path.stat().st_size >= size for path in home.rglob("*.incomplete")):
            return
        Event().wait(0.1)
    raise AssertionError("nothing was written")


@pytest.mark.parametrize("part", [b"?" * PIECE, None])
def test_a_damaged_download(large, tmp_path, part):
    """The wire spoils it, or an older version left a part of it: never taken for the model."""
    home, digest = tmp_path / "home", hashlib.sha256(large.read_bytes()).hexdigest()
    blobs = home / "hub/models--org--m-GGUF/blobs"
    if part:
        blobs.mkdir(parents=True)
        (blobs / f"{digest}.incomplete").write_bytes(part)
    with serving({"org/m-GGUF": {large.name: large}}, spoils=part is None) as there:
        done = there.run(home, "pull", "org/m-GGUF")
        if not part:
            assert (done.returncode, done.stdout) == (1, "")
            assert digest in done.stderr
            assert "from the start" in done.stderr
            assert not list(blobs.iterdir())
            done = there.run(home, "pull", "org/m-GGUF")
        assert done.returncode == 0, done.stderr
        assert there.sent[-1] == (large.name, 0, large.stat().st_size)
    assert Path(done.stdout.strip()).read_bytes() == large.read_bytes()


ALONE = [
    """
import huggingface_hub.file_download as library
library.are_symlinks_supported = lambda *_: False
from dspark_gguf.cli import main; main(["pull", "org/m-GGUF"])
""",
    *(
        f"""
import sys
from dspark_gguf import errors, hub
try:
    print(hub.download("org/m-GGUF", "*.gguf"{place}))
except errors.DSparkError as error:
    sys.exit(str(error))
"""
        for place in ("", ", local_dir='here'")
    ),
]


@pytest.mark.parametrize("program", ALONE)
def test_a_damaged_download_of_huggingface_hub(large, tmp_path, monkeypatch, program):
    """Without links in the cache (Windows), and for `from_pretrained`: the same check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hub.__file__).parents[1]))
    home = tmp_path / "home"
    with serving({"org/m-GGUF": {large.name: large}}, spoils=1) as there:
        results = [run_python("-c", program, env=there.environment(home)) for _ in range(2)]
    assert [done.returncode for done in results] == [1, 0], results[1].stderr
    assert "from the start" in results[0].stderr
    assert (tmp_path / results[1].stdout.strip()).read_bytes() == large.read_bytes()


def test_a_hub_that_goes_away(large, tmp_path):
    """One message, no traceback, no part of a file left."""
    with serving({"org/m-GGUF": {large.name: large}}, cuts=[100] * 9) as there:
        done = there.run(tmp_path / "home", "pull", "org/m-GGUF")
    assert done.returncode == 1
    assert "cannot reach the hub for org/m-GGUF:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_a_full_disk(tmp_path, monkeypatch):
    """Refused before the first byte."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "not" / "yet")
    hub.require_room([hub.Download("org/m", {"m.gguf": 1})])
    with pytest.raises(ResourceError, match=r"takes 1000000000\.0 GB"):
        hub.require_room([hub.Download("org/m", {"m.gguf": 10**18})])


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_a_cache_that_cannot_be_written_to(large, tmp_path):
    """It is not the network: a file in the place of its folder, a file too large for the disk."""

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").touch()
    with serving({"org/m-GGUF": {large.name: large}}) as there:
        words, other = (*PROGRAM, "pull", "org/m-GGUF"), tmp_path / "other"
        ran = [
            run(*words, env=there.environment(tmp_path / "home")),
            run(*words, env=there.environment(other), preexec_fn=limit),
        ]
    for done, reason in zip(ran, ("Not a directory", "File too large"), strict=True):
        assert done.returncode == 1
        assert f"hub: {reason}." in done.stderr
        assert "cannot write to" in done.stderr


def test_a_cache_whose_note_of_what_is_newest_is_damaged(large, tmp_path):
    """Whoever wrote it: what to delete is said."""
    with serving({"org/m-GGUF": {large.name: large}}) as there:
        assert there.run(tmp_path, "pull", "org/m-GGUF").returncode == 0
        [note] = tmp_path.rglob("refs/main")
        note.write_bytes(b"\xff")
        done = there.run(tmp_path, "pull", "org/m-GGUF")
    assert done.returncode == 1
    assert "hub is damaged: not UTF-8 text. Delete its folder of org/m-GGUF" in done.stderr


def test_what_is_there_needs_no_room(tmp_path, monkeypatch):
    """`pull` again, on a disk that is full by now."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: "/there")
    hub.require_room([hub.Download("org/m", {"m.gguf": 10**18})])


def test_a_file_that_changed_on_the_hub(large, tmp_path, monkeypatch):
    """`from_pretrained` into a folder that has the old one: the new one is checked too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(hub.__file__).parents[1]))
    here = tmp_path / "here"
    here.mkdir()
    (here / large.name).write_bytes(b"old")
    with serving({"org/m-GGUF": {large.name: large}}, spoils=1) as there:
        done = run_python("-c", ALONE[2], env=there.environment(tmp_path / "home"))
    assert done.returncode == 1
    assert "from the start" in done.stderr
