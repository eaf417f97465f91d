"""Files that are written: whole or not at all, in their own place, or refused before the work."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.measure.chains import Chains, load_chains, save_chains
from dspark_gguf.paths import (
    MIB,
    cache_path,
    data_dir,
    discreet,
    file_errors,
    read_whole,
    replacing,
    require_writable,
)

links = pytest.mark.skipif(sys.platform == "win32", reason="links and named pipes")


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


@links
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_one(tmp_path, is_there):
    """What it points to is written, in the folder where that is."""
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    link.symlink_to(real)
    if is_there:
        real.write_text("old")
    write(link)
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert os.listdir(real.parent) == ["real"]


@links
def test_a_name_as_long_as_can_be(tmp_path):
    """The file beside it needs no more room; a character has up to four bytes."""
    for path in (tmp_path / ("n" * 255), tmp_path / ("\U0001f600" * 63)):
        write(path)
        assert path.read_text() == "new"


@links
def test_a_named_pipe_stays_one(tmp_path):
    """Its reader gets the file, even of arrays, and nothing is left beside it."""
    pipe, copy = tmp_path / "pipe", tmp_path / "copy.npz"
    os.mkfifo(pipe)
    reader = Thread(target=lambda: copy.write_bytes(pipe.read_bytes()), daemon=True)
    reader.start()
    text = Chains("code", np.zeros((2, 1), np.float32), np.ones((2, 1), bool))
    require_writable(pipe)
    save_chains(pipe, [text])
    reader.join(timeout=20)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert load_chains(copy)[0].domain == "code"
    assert sorted(os.listdir(tmp_path)) == ["copy.npz", "pipe"]


@pytest.mark.parametrize("filename", [None, "temporary", "elsewhere"])
def test_an_error_names_the_file(tmp_path, filename):
    """Not the temporary one beside it, which nobody knows; another file keeps its name."""
    path = tmp_path / "file"

    def fill():
        with replacing(path) as temporary:
            names = {"temporary": str(temporary), "elsewhere": "elsewhere"}
            raise OSError(28, "No space left on device", names.get(filename))

    with pytest.raises(OSError, match="No space") as raised:
        fill()
    assert raised.value.filename == ("elsewhere" if filename == "elsewhere" else str(path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["missing/file", "file/below", "."])
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    """With the name that the user gave; a file that can be is not touched."""
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(UsageError, match=f"cannot write {tmp_path / name}: "):
        require_writable(tmp_path / name)
    require_writable(file)
    require_writable(tmp_path / "other")
    assert os.listdir(tmp_path) == ["file"]
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    "words",
    [
        ["trace", "-o"], ["profile", "--plot"], ["calibrate", "--plot"],
        ["lookup", "build", __file__, "-o"], ["run", "--jsonl", "jobs.jsonl", "-o"],
    ],
)  # fmt: skip
def test_commands_look_at_the_place_first(tmp_path, monkeypatch, words):
    """Before a model is looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "Hi"}')
    out = tmp_path / "missing" / "out.svg"
    done = CliRunner().invoke(main, [*words, str(out), "-m", "missing.gguf"])
    assert done.exit_code == 2
    assert f"cannot write {out}: No such file or directory. Check the path." in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
@pytest.mark.parametrize("words", [
    ("replay", "--chains", "c.npz", "--table", "/dev/zero"),
    ("run", "hi", "--grammar", "/dev/zero"), ("run", "hi", "--chat-template", "/dev/zero"),
    ("run", "-f", "/dev/zero"), ("run", "--jsonl", "/dev/zero"),
])  # fmt: skip
def test_a_file_without_an_end_does_not_fill_the_memory(tiny_files, monkeypatch, words):
    """A device or a pipe says nothing of its size; commands read as much as makes sense."""
    for module in ("terminal", "stdin"):
        monkeypatch.setattr(f"dspark_gguf.chat.{module}.GIB", 2 * MIB)
    model = () if words[0] == "replay" else ("-m", str(tiny_files.target), "-d", "none")
    done = CliRunner().invoke(main, [*words, *model])
    assert done.exit_code == 2
    assert re.search("/dev/zero.*: it has more than (2|16) MiB", done.stderr), done.stderr


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_a_file_that_has_an_end_is_read_to_it(tmp_path, size):
    """Up to the limit and no further."""
    data = secrets.token_bytes(size)
    (tmp_path / "a").write_bytes(data)
    assert read_whole(tmp_path / "a", 2 * MIB) == data
    assert read_whole(io.BytesIO(data), 2 * MIB) == data
    with pytest.raises(OSError, match="more than 2 MiB"):
        read_whole(io.BytesIO(bytes(2 * MIB) + b"."), 2 * MIB)


@links
def test_a_user_without_a_home(monkeypatch, tmp_path):
    """As in containers, where nobody has its number: one line, whatever needs a folder."""
    import pwd

    def nobody(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for needs in (cache_path, data_dir):
        with pytest.raises(DSparkError, match="this user has no home folder"):
            needs()
    result = CliRunner().invoke(main, ["models", "--local"])
    assert result.exit_code == 1
    assert result.stderr.startswith("dspark-gguf: this user has no home folder")
    assert discreet("/tmp/a") == "/tmp/a"
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):  # then nothing needs one
        monkeypatch.setenv(name, str(tmp_path))
    result = CliRunner().invoke(main, ["models", "--local"])
    assert result.exit_code == 0, result.stderr


def test_a_home_that_is_the_root(monkeypatch):
    """As in containers, too: not every / is the home."""
    monkeypatch.setenv("HOME", "/")
    assert discreet("bench -m /tmp/a.gguf") == "bench -m /tmp/a.gguf"


def test_a_full_disk_is_no_wrong_use():
    """It needs space, not another path: the exit code is that of a failure."""
    for number, code, hint in ((errno.ENOSPC, 1, "Free some space"), (errno.EACCES, 2, "Check")):
        with pytest.raises(DSparkError, match=hint) as raised, file_errors("write", Path("plot")):
            raise OSError(number, os.strerror(number))
        assert raised.value.exit_code == code
