"""`dspark-gguf chat` in a real terminal."""

from __future__ import annotations

import os
import re
import sys

import pexpect
import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main

COMMAND = "from dspark_gguf.cli import main; main()"
QUESTION = "Write a Python function that adds two numbers."
STATUS = r"(\d+) tok  [^\r\n]*"


@pytest.fixture
def terminal(demo_files):
    """A chat on the demo pair, greedy, waiting for its first message."""
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    child = pexpect.spawn(
        sys.executable,
        ["-c", COMMAND, "chat", "--temp", "0", "-c", "1024"],
        env=environment, encoding="utf-8", timeout=30, dimensions=(40, 200),
    )  # fmt: skip
    child.expect("/help lists the commands")
    child.expect(">>>")
    yield child
    child.close(force=True)


def plain(text):
    """Without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


def test_ctrl_c_keeps_the_chat_and_the_next_answer_is_right(terminal):
    """Ctrl-C in the middle of an answer: the chat goes on, and the caches are sound.

    The next answer begins as a new process's does; further on, rows computed in batches of
    other sizes may part at a near-tie.
    """
    ran = CliRunner().invoke(main, ["run", QUESTION, "--temp", "0", "-c", "1024"])
    wanted = ran.stdout[:24]
    terminal.sendline("Tell me a very long story about the sea and its ships.")
    terminal.expect(r"ships\.[\s\S]*\r\n[^\x1b\r\n]*\w+ \w+ \w+ \w+")  # the answer has begun
    terminal.sendintr()
    terminal.expect(STATUS + "interrupted")
    terminal.expect(">>>")
    terminal.sendline("/reset")
    terminal.expect("forgotten")
    terminal.sendline(QUESTION)
    terminal.expect(STATUS)
    assert wanted in plain(terminal.before)
    terminal.expect(">>>")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_ctrl_c_twice_leaves(terminal):
    """At the prompt the first Ctrl-C explains, the second leaves."""
    terminal.sendintr()
    terminal.expect("/exit leaves")
    terminal.expect(">>>")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_pasted_lines_are_one_message(terminal):
    """Bracketed paste: a newline inside does not send the message."""
    terminal.send("\x1b[200~My name is Ada.\nSay my name.\x1b[201~")
    terminal.send("\r")
    terminal.expect(STATUS)
    terminal.expect(">>>")
    terminal.sendline("/undo")
    terminal.expect("taken back: My name is Ada. Say my name.")


def test_history_survives_the_session(terminal, demo_files):
    """The arrow up brings back what was typed, also in the next session."""
    terminal.sendline("/system remembered words")
    terminal.expect("system prompt: remembered words")
    terminal.expect(">>>")
    terminal.sendline("/bye")
    terminal.expect(pexpect.EOF)
    again = pexpect.spawn(
        sys.executable, ["-c", COMMAND, "chat", "-c", "512"],
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8", timeout=30,
    )  # fmt: skip
    again.expect(">>>")
    again.send("\x1b[A\x1b[A\r")
    again.expect("system prompt: remembered words")
    again.close(force=True)
