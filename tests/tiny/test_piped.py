"""stdin beside a prompt: real shells, real pipes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial

import pytest

from dspark_gguf.chat import terminal
from tests.children import PATIENCE, begun

#: Prints the prompt that `run` would answer, as JSON; a silence is over soon.
ASK = """
import json, sys
from pathlib import Path
from dspark_gguf.chat import stdin, terminal
from dspark_gguf.cli.start import settle
settle()
stdin.PATIENCE = terminal.PATIENCE = 0.2
file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
print(json.dumps(stdin.read_prompt(sys.argv[1] or None, file)))
"""
LEFT, SILENT = "belongs to the calling shell and was not read", "continuing without"
WAITING = "waiting for text on stdin"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs to know who holds a pipe")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts a program, where `ask.py`, `lines` and `$ASK` are, with this stdin."""
    (tmp_path / "ask.py").write_text(ASK)
    (tmp_path / "lines").write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("ASK", f"{sys.executable} ask.py")
    return partial(begun, text=True)


def told(child, text=None):
    """The prompts that a program prints, and what it says on stderr."""
    with child as process:
        out, said = process.communicate(text, timeout=PATIENCE)
    return [json.loads(prompt) for prompt in out.splitlines()], said


GIVEN = {
    "a pipe": ("cat lines | $ASK Why?", ["one\ntwo\n\nWhy?"]),
    "a file": ("$ASK Why? < lines", ["one\ntwo\n\nWhy?"]),
    # It writes only when it is told that it is waited for.
    "a command that takes its time": (
        "mkfifo said; (head -1 said > heard; cat lines) | $ASK Why? 2> said; cat heard >&2",
        ["one\ntwo\n\nWhy?"],
    ),
    "nothing": ("true | $ASK Why?; $ASK Why? <&-; $ASK Why? < /dev/null", ["Why?"] * 3),
    "no argument": ("cat lines | $ASK ''", ["one\ntwo\n"]),
    "asked for": ("cat lines | $ASK -", ["one\ntwo\n"]),
    "asked for by -f": ("cat lines | (true; $ASK Why? -; true)", ["one\ntwo\n\nWhy?"]),
    "through a wrapper": ("cat lines | timeout 30 $ASK Why?", ["one\ntwo\n\nWhy?"]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_is_read(started, name):
    """What a question is about comes through a pipe, as with `llm` and `mods`, or is asked for."""
    line, prompts = GIVEN[name]
    got, said = told(started("bash", "-c", line))
    assert got == prompts
    assert said.splitlines() == ([WAITING] if "time" in name else [])


LOOPS = {
    "file": "while read q; do $ASK $q; done < lines",
    "pipe": "cat lines | while read q; do $ASK $q; done",
    "wrapper": "cat lines | while read q; do timeout 30 $ASK $q; done",
}


@pytest.mark.parametrize(
    ("name", "program"), [("file", "bash"), ("pipe", "bash"), ("wrapper", "bash"), ("pipe", "sh")]
)
def test_a_loop_keeps_its_lines(started, name, program):
    """`while read q; do run "$q"; done`: the next lines are the loop's, and that is said."""
    if name != "file" and sys.platform != "linux":
        pytest.skip("needs to know who holds a pipe")
    got, said = told(started(program, "-c", LOOPS[name]))
    assert got == ["one", "two"]
    assert said.count(LEFT) == 1  # nothing is left after the last


@linux
def test_a_silent_shell_is_not_waited_for(started):
    """A script whose stdin is open and silent, as services start it."""
    reading, writing = os.pipe()
    try:
        assert told(started("bash", "-c", "$ASK hi; true", stdin=reading)) == (["hi"], "")
    finally:
        os.close(reading)
        os.close(writing)


@linux
def test_a_silent_program_is_not_waited_for_long(started):
    """`Popen(stdin=PIPE)`: going on without is said; what it writes is read."""
    ask = (sys.executable, "ask.py", "Why?")
    with started(*ask, stdin=subprocess.PIPE) as child:
        assert json.loads(child.stdout.read()) == "Why?"  # and stdin is open still
        assert SILENT in child.stderr.read()
    assert told(started(*ask, stdin=subprocess.PIPE), "text") == (["text\n\nWhy?"], "")


def test_a_silent_socket_is_not_waited_for_long(started):
    """Node and ssh give one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        got, said = told(started(sys.executable, "ask.py", "hi", stdin=theirs))
    assert got == ["hi"]
    assert SILENT in said


def test_a_chat_says_that_it_waits(monkeypatch):
    """Only before the first line, and only after a silence."""
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    reading, writing = os.pipe()
    heard = []
    monkeypatch.setattr(
        terminal.Screen,
        "note",
        lambda self, line: (heard.append(line), os.write(writing, b"One.\nTwo.\n")),
    )
    with os.fdopen(reading, "rb") as stream:
        reader = terminal.PipeReader(stream)
        assert reader.line("") == "One."
        assert reader.line("") == "Two."
        os.close(writing)
    assert heard == ["waiting for messages on stdin, one a line"]
