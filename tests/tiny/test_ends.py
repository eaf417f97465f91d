"""Ends that nobody typed, in real processes: signals, a closed terminal."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from contextlib import suppress
from threading import Event

import pytest
from prompt_toolkit.history import InMemoryHistory

from dspark_gguf.chat.keyboard import TerminalReader
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.terminal import Screen
from dspark_gguf.chat.transcript import write
from dspark_gguf.signals import ended_by_signals, interruptible
from tests.children import (
    PATIENCE,
    default_signals,
    ended,
    program_in_terminal,
    run_python,
    started,
    window_closed,
)
from tests.tiny_gguf import Tiny, write_llama

if not hasattr(signal, "SIGHUP"):
    pytest.skip("the signals of Unix", allow_module_level=True)

#: Answers that go on for longer than any test waits, on one thread.
ENDLESS = [
    "chat", "--ignore-eos", "--temp", "0", "-c", "60000", "-t", "1", "--spec", "off",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("ends") / "tiny.gguf", Tiny(context=65536))


@pytest.fixture
def home(tmp_path):
    """Environment with a data folder of its own."""
    return {**os.environ, "XDG_DATA_HOME": str(tmp_path / "DATA")}


def transcript(home, name="last"):
    path = os.path.join(home["XDG_DATA_HOME"], "dspark-gguf", "sessions", name, "chat.json")
    with open(path, encoding="utf-8") as file:
        return json.load(file)["messages"]


def terminal(home, model, *words):
    """A chat in a terminal, waiting for its first message."""
    child = program_in_terminal(*ENDLESS, "-m", model, *words, env=home, encoding="latin-1")
    child.expect(">>>")
    return child


def answering(child, text):
    """Say something, and wait for the beginning of the answer."""
    child.send(text + "\r")
    child.expect(text + r"[\s\S]*\n[\s\S]{40}")


def ignored():
    """Like a background job of a script, under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


SAYS = "from signal import *; print(*(int(getsignal(n)) for n in (SIGHUP, SIGUSR1)))"


def test_children_start_with_default_signals():
    """What this process was told to ignore is not ignored in the programs that are tested."""
    before = [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGUSR1)]
    try:
        inherited = run_python("-c", SAYS).stdout
        with default_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert run_python("-c", SAYS).stdout.split() == [str(int(signal.SIG_DFL))] * 2
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, old in zip((signal.SIGHUP, signal.SIGUSR1), before, strict=True):
            signal.signal(number, old)
    assert inherited.split() == [str(int(signal.SIG_IGN))] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_ignored", [True, False])
def test_what_is_ignored_stays_ignored(number, is_ignored):
    """Inside an answer a signal counts, unless whoever started us wants it to be ignored."""
    before = signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    interrupt, seen = Event(), []
    try:
        with suppress(SystemExit), ended_by_signals(), interruptible(interrupt):
            os.kill(os.getpid(), number)
            seen.append(interrupt.is_set())
        now = signal.getsignal(number)
    finally:
        signal.signal(number, before)
    assert now == (signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    if is_ignored:
        assert seen == [False]
    else:
        assert seen == ([True] if number == signal.SIGINT else [])


@pytest.mark.parametrize("is_ignored", [True, False])
def test_a_background_job_of_a_script(home, model, is_ignored):
    """`nohup dspark-gguf run ... &`: a Ctrl-C for the foreground and a closed terminal pass by."""
    words = ["run", *ENDLESS[1:], "-m", model, "-n", "1000", "abc"]
    how = {"preexec_fn": ignored} if is_ignored else {}
    with started(*words, env=home, **how) as job:
        begin = job.stdout.read(1)
        job.send_signal(signal.SIGINT)
        rest, said = job.communicate(timeout=PATIENCE)
        assert job.returncode == (0 if is_ignored else 130), said
    assert len(begin + rest) > 900 or not is_ignored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", [None, "fox"])
def test_a_signal_in_the_middle_of_an_answer(home, model, number, name):
    """What was said until then is kept, and the chat says where; the exit code is the shells'."""
    child = terminal(home, model, *(["--session", name] if name else []))
    answering(child, "Tell me.")
    child.kill(number)
    child.expect(f"saved; resume with `dspark-gguf chat --session {name or 'last'}`")
    assert "Traceback" not in child.before
    assert ended(child) == 128 + number
    user, assistant = transcript(home, name or "last")
    assert user == {"role": "user", "content": "Tell me."}
    assert assistant["content"]


def test_what_goes_wrong_in_the_line_editor_is_no_traceback():
    """Such as a signal while it reads the history; the exit is raised all the same."""
    done = run_python(
        "-c",
        "import logging, dspark_gguf.chat.keyboard\n"
        "try:\n    raise SystemExit(143)\n"
        "except BaseException:\n    logging.getLogger('prompt_toolkit.buffer').exception('x')",
    )
    assert not done.stderr


def test_a_note_ends_the_line_of_an_answer(capsys):
    """Such as one about a signal, or an error, in the middle of it."""
    for on_terminal in (False, True):
        screen = Screen()
        screen._out._force_terminal = on_terminal
        screen.write("Once upon", dim=on_terminal)
        screen.note("saved")
        screen.error("failed")
        out, err = capsys.readouterr()
        assert re.sub(r"\x1b\[[0-9;]*m", "", out) == "Once upon\n"
        assert err == "saved\nfailed\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt(home, model, number):
    """Nobody is answering; the terminal is left as it was."""
    child = terminal(home, model, "-n", "4")
    child.send("One.\r")
    child.expect("stopped at the token limit")
    child.expect(">>>")
    child.kill(number)
    assert ended(child) == 128 + number
    assert "Traceback" not in child.before
    assert len(transcript(home)) == 2


def test_a_closed_terminal(home, model):
    """The window is shut in the middle of an answer: the next chat goes on from there."""
    child = terminal(home, model)
    answering(child, "Tell me.")
    assert window_closed(child) == 128 + signal.SIGHUP
    first = transcript(home)
    assert len(first) == 2
    assert first[1]["content"]
    again = terminal(home, model, "--session", "last", "-n", "2")
    assert "session last: 2 messages" in again.before
    again.sendline("/bye")
    assert ended(again) == 0
    assert transcript(home) == first


@pytest.mark.parametrize(("path", "ends"), [(None, SystemExit), ("file", OSError)])
def test_a_terminal_that_is_gone_before_its_signal_is_seen(path, ends):
    """What is written then fails; a disk that fails is something else."""
    with pytest.raises(ends) as found, ended_by_signals():
        raise OSError(errno.EIO, "Input/output error", path)
    assert path or found.value.code == 128 + signal.SIGHUP


def test_killed_between_turns(home, model):
    """SIGKILL leaves no time for anything: the turn before is on the disk already."""
    child = terminal(home, model, "-n", "4")
    child.send("One.\r")
    child.expect("stopped at the token limit")
    child.expect(">>>")
    child.kill(signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert len(transcript(home)) == 2


def test_a_history_that_cannot_be_written(tmp_path, monkeypatch):
    """A full disk in the middle of a chat: what was typed is answered, and remembered so long."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    history = TerminalReader()._session.history
    path = tmp_path / "dspark-gguf" / "history"
    path.unlink()
    path.mkdir()
    history.append_string("One.")
    assert history.get_strings() == ["One."]


@pytest.mark.skipif(os.name == "nt", reason="no modes")
def test_what_was_typed_is_nobody_elses(tmp_path, monkeypatch):
    """History, folder of sessions, transcripts: new ones, and what an older version left open."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    data = tmp_path / "dspark-gguf"
    before = os.umask(0)
    try:
        for _ in range(2):
            TerminalReader()._session.history.append_string("secret")
            kept = SavedSession("talk")
            write({"messages": []}, kept.path)
            kept.close()
            modes = {path.name: path.stat().st_mode & 0o777 for path in (data, *data.rglob("*"))}
            assert modes.pop("lock")
            assert modes == {
                "dspark-gguf": 0o700, "history": 0o600, "sessions": 0o700, "talk": 0o700,
                "chat.json": 0o600,
            }  # fmt: skip
            for path in (data, *data.rglob("*")):
                path.chmod(0o777 if path.is_dir() else 0o666)
    finally:
        os.umask(before)


@pytest.mark.parametrize("there", ["folder", "link to a folder"])
def test_something_else_in_the_place_of_the_history(tmp_path, monkeypatch, there):
    """No reason not to chat: it is remembered for so long as the chat lasts."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "dspark-gguf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    history = tmp_path / "dspark-gguf" / "history"
    history.mkdir() if there == "folder" else history.symlink_to(tmp_path / "elsewhere")
    assert isinstance(TerminalReader()._session.history, InMemoryHistory)
