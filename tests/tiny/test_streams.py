"""Streams that are closed, or that are not UTF-8; names of files that are no text."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from dspark_gguf.cli.start import settle
from dspark_gguf.visible import as_json
from tests.children import PROGRAM, run
from tests.tiny_gguf import write_llama

#: As a service or a cron job has it.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
TEXT = "café “你” 😀"
FEW = ["--spec", "off", "-c", "256", "-t", "1", "-n", "8", "--seed", "1"]


def written(text, encoding, monkeypatch):
    """The bytes that a stream of this encoding gets."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding, newline="\n"))
    settle()
    sys.stdout.write(text)
    sys.stdout.flush()
    return raw.getvalue()


@pytest.mark.parametrize(
    ("encoding", "wanted"),
    [
        ("utf-8", TEXT.encode()),
        ("ascii", b"caf? ??? ?"),
        ("cp1252", b"caf\xe9 \x93?\x94 ?"),
        ("cp437", b"caf\x82 ??? ?"),
    ],
)
def test_an_answer_on_any_stream(encoding, wanted, monkeypatch):
    """What the stream has not is replaced, and the rest of the answer comes."""
    assert written(TEXT, encoding, monkeypatch) == wanted


def test_a_name_that_is_no_text_on_any_stream(monkeypatch):
    """A path is printed for scripts: its own bytes."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    for encoding in ("utf-8", "ascii"):
        assert written(name, encoding, monkeypatch) == b"caf\xe9"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_on_any_stream(encoding, monkeypatch):
    """It reads back as it was; UTF-8 stays readable."""
    value = {"text": TEXT + "\x7f\ud800"}
    line = as_json(value, io.TextIOWrapper(io.BytesIO(), encoding))
    assert json.loads(line) == value
    assert written(line, encoding, monkeypatch).decode(encoding) == line
    assert (TEXT in line) == (encoding == "utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in a file whose name is no UTF-8; what it says is seldom ASCII."""
    path = tmp_path_factory.mktemp("streams") / os.fsdecode(b"caf\xe9.gguf")
    try:
        path.touch()
    except OSError:
        pytest.skip("a disk that wants UTF-8")
    made = write_llama(path.with_name("tiny.gguf"))
    return made.replace(path)


def program(*words, **environment):
    """Exit code, and the bytes on stdout and stderr."""
    ran = run(*PROGRAM, *words, env={**os.environ, **environment}, text=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_the_same_answer_in_another_locale(model):
    """`LC_ALL=C` in a service: argument, file name and answer are those of a terminal."""
    words = ["run", "Schön?", "--system", "é", "-m", model, *FEW]
    code, plain, _ = program(*words)
    assert code == 0
    assert b"caf\\udce9" in program(*words, "-v")[2]
    assert not plain.isascii()
    code, out, said = program(*words, **ASCII)
    assert code == 0, said
    assert out == plain.decode().encode("ascii", "replace")
    out = program(*words, "--json", **ASCII)[1]
    assert out.isascii()
    assert json.loads(out)["text"] + "\n" == plain.decode()


def test_every_command_prints_in_another_locale(model):
    """The names of files, and what is said about them."""
    for words in (["inspect", model], ["inspect", model, "--json"], ["models"]):
        code, out, said = program(*words, **ASCII)
        assert code == 0, said
        assert out.isascii()
        assert b"caf\\udce9.gguf" in out or words == ["models"]


def test_closed_streams(model):
    """A command of a service that closes what it does not need: the same answer, no message.

    An answer that has nowhere to go is an error.
    """
    words = " ".join(["run Hi -m", "caf*.gguf", *FEW])
    line = f'cd {model.parent}; "$PYTHON" -c "$MAIN" {words}'
    environment = {**os.environ, "PYTHON": sys.executable, "MAIN": PROGRAM[-1]}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    outs = []
    for ends in ("", "<&- 2>&-", "<&- >&- 2>&-", ">&-"):
        ran = run("sh", "-c", f"{line} {ends}", env=environment, text=False)
        assert ran.returncode == (">&-" in ends.split()), ran.stderr
        assert b"Traceback" not in ran.stderr
        assert b"Exception" not in ran.stderr
        outs.append(ran.stdout)
    assert outs == [outs[0], outs[0], b"", b""]
    assert outs[0]
    assert b"cannot read or write stdout: Bad file descriptor" in ran.stderr
