"""Trials of a build in a process of its own: whatever becomes of it, ours goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from dspark_gguf.engine import first_pass, trial
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import open_cache
from dspark_gguf.engine.trial import Outcome
from dspark_gguf.engine.trial_model import write_trial_model
from dspark_gguf.paths import cache_path
from tests.children import PATIENCE, begun

DIES = Outcome("ends the process (SIGSEGV)")
DEAD = Outcome("ends the process (SIGILL)", everywhere=True)
WORKS = Outcome(ratios={1: 0.6, 4: 0.7, 16: 0.6})
SLOWER = Outcome(ratios={1: 1.3, 4: 1.2, 16: 1.15})
NEVER = Outcome("could not be tried: no room", known=False)

SAID = {
    "started": '{"started": true}',
    "plain": '{"started": true}\n{"plain": true}',
    "numbers": '{"started": 1}\n{"plain": 1}\n{"difference": 1.4}\n{"ratios": {"1": 0.5}}',
    "no number": '{"started": 1}\n{"plain": 1}\n{"difference": NaN}\n{"ratios": {"1": 0.5}}',
    "all": '{"started": 1}\n{"plain": 1}\nhello\n{"difference": 0.01}\n{"ratios": {"1": 0.5}}',
    "error": '{"started": true}\n{"error": "needed memory, got none; buy some"}',
}
DIE = "; import os, signal; os.kill(os.getpid(), signal.{})"
STAND_INS = {
    "works": (SAID["all"], "", Outcome(ratios={1: 0.5})),
    "dies": (SAID["plain"], DIE.format("SIGSEGV"), DIES),
    "dies everywhere": (SAID["started"], DIE.format("SIGILL"), DEAD),
    "aborts late": (SAID["all"], DIE.format("SIGABRT"), Outcome("ends the process (SIGABRT)")),
    "exits": (SAID["plain"], "; sys.exit(3)", Outcome("ends the process (code 0x3)")),
    "other numbers": (SAID["numbers"], "", Outcome("computes something else")),
    "no numbers": (SAID["no number"], "", Outcome("computes something else")),
}
#: What says nothing of the build.
NO_ANSWERS = {
    "dies before it begins": ("", DIE.format("SIGSEGV")),
    "is killed": (SAID["plain"], DIE.format("SIGKILL")),
    "has no memory": (SAID["error"], ""),
    "prints nonsense": ('{"started": 1}\n{"ratios": [1]}\n[2]\n{"a\n\x00\udcff' + "[" * 9999, ""),
    "says nothing": ("", ""),
    "is cut off": (SAID["plain"], ""),
}


@pytest.fixture
def nothing_known(tmp_path, monkeypatch):
    """No trial was made yet, in a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "_known", {})


def stand_in(monkeypatch, said, then):
    """Another child: prints `said`, with noise on stderr, and goes on with `then`."""
    said = said.encode("utf-8", "surrogateescape")
    monkeypatch.setattr(
        trial, "_CHILD",
        f"import sys; sys.stdout.buffer.write({said!r}); sys.stdout.flush(); "
        f"sys.stderr.write('a great noise'); sys.stderr.flush(){then}",
    )  # fmt: skip


def kept():
    return list(cache_path("builds").glob("*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("name", STAND_INS)
def test_an_end_is_an_answer(nothing_known, monkeypatch, capfd, name):
    """It is kept, and the child is not started again; nothing of it is seen."""
    said, then, wanted = STAND_INS[name]
    stand_in(monkeypatch, said, then)
    assert trial.outcome("extra buffers") == wanted
    (path,) = kept()
    stand_in(monkeypatch, "", "")
    trial._known.clear()
    assert trial.outcome("extra buffers") == wanted
    assert kept() == [path]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_says_nothing_of_the_build_is_not_kept(nothing_known, monkeypatch, capfd, name):
    """llama.cpp's own choice then, unless there is AMX: that is known to end processes."""
    stand_in(monkeypatch, *NO_ANSWERS[name])
    found = trial.outcome("extra buffers")
    assert not found.known
    assert found.fault.startswith("could not be tried: ")
    assert kept() == []
    for amx in (False, True):
        monkeypatch.setattr(trial, "has_amx", lambda amx=amx: amx)
        assert trial.extra_buffers() is not amx
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_child_that_hangs_is_ended(nothing_known, monkeypatch, tmp_path):
    """And that is an answer."""
    program = tmp_path / "hang"
    program.write_text(
        f"#!/bin/sh\necho '{SAID['plain']}'\necho $$ > {tmp_path}/id\nexec sleep 600"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(trial, "_SECONDS", 1)
    assert trial.outcome("extra buffers") == Outcome("takes more than 1 s")
    assert len(kept()) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_no_child_can_be_started(nothing_known, monkeypatch, tmp_path):
    """A frozen program, or one without Python: it is not started once more as the child."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    assert not trial.outcome("gpu").known
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    assert not trial.outcome("gpu", again=True).known


def test_a_cache_folder_that_cannot_be_written(nothing_known, monkeypatch, tmp_path):
    """It is tried all the same, every time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    stand_in(monkeypatch, SAID["all"], "")
    assert trial.outcome("extra buffers") == Outcome(ratios={1: 0.5})


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"ratios": 1}', '{"ratios": {"a": 1}}'])
def test_a_damaged_file_is_renewed(nothing_known, monkeypatch, text):
    """As if there were none."""
    stand_in(monkeypatch, SAID["all"], "")
    trial.outcome("extra buffers")
    (path,) = kept()
    path.write_text(text)
    trial._known.clear()
    assert trial.outcome("extra buffers") == Outcome(ratios={1: 0.5})
    assert json.loads(path.read_text())["ratios"] == {"1": 0.5}


def test_another_build_or_machine_is_tried_anew(monkeypatch):
    """Each has a file of its own."""
    paths = {trial._path("extra buffers"), trial._path("gpu")}
    monkeypatch.setattr(trial, "processor", lambda: "another")
    paths.add(trial._path("gpu"))
    monkeypatch.setattr(trial, "_lib", SimpleNamespace(_name=__file__))
    paths.add(trial._path("gpu"))
    assert len(paths) == 4


REAL = "from dspark_gguf.engine import trial; print(trial.outcome('extra buffers'))"


def test_this_build_and_two_processes_at_once(nothing_known):
    """The real trial: both have an answer, and it is one file."""
    command = (sys.executable, "-c", REAL)
    with begun(*command, text=True) as one, begun(*command, text=True) as other:
        said = [child.communicate(timeout=PATIENCE)[0] for child in (one, other)]
    assert all(line.startswith("Outcome(fault='") for line in said), said
    assert len(kept()) == 1
    found = trial.outcome("extra buffers")
    assert found.known
    assert not found.everywhere
    assert found.works == (found.ratios.keys() == {1, 4, 16})
    assert found.works or trial.has_amx(), found


def test_a_wrong_weight_is_seen(tmp_path):
    """The trial's model hides none of its weights: what a wrong kernel makes of one shows."""
    path = write_trial_model(tmp_path / "trial.gguf")
    data = path.read_bytes()

    def rows(file):
        model = Model(file, first_pass._PLAIN)
        cache = open_cache(model, 32, 4, Event())
        found = first_pass._rows(cache, 4)
        cache.close()
        model.close()
        return found

    wanted = rows(path)
    assert np.isfinite(wanted).all()
    for name in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        place, size = where(path, f"blk.0.{name}.weight")
        other = tmp_path / f"{name}.gguf"
        other.write_bytes(data[:place] + bytes(size) + data[place + size :])
        assert first_pass._difference(rows(other), wanted) > trial._ROUNDING, name


def where(path, name):
    """Offset and bytes of a tensor."""
    import gguf

    (tensor,) = [one for one in gguf.GGUFReader(path).tensors if one.name == name]
    return tensor.data_offset, tensor.n_bytes
