"""`dspark-gguf chat` in a real terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys

import pytest
from click.testing import CliRunner

from dspark_gguf.chat.terminal import Screen
from dspark_gguf.cli import main
from dspark_gguf.visible import as_json
from tests.children import PROGRAM, ended, program_in_terminal, run
from tests.foreign import gguf_header
from tests.foreign import text as gguf_text

QUESTION = "Write a Python function that adds two numbers."
STATUS = r"(\d+) tok · [^\r\n]*"


@pytest.fixture
def terminal(demo_files):
    """A chat on the demo pair, greedy, waiting for its first message."""
    child = program_in_terminal("chat", "--temp", "0", "-c", "1024", env=os.environ)
    child.expect("/help lists the commands")
    child.expect(">>>")
    return child


def plain(text):
    """Without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")


def test_ctrl_c_keeps_the_chat_and_the_next_answer_is_right(terminal):
    """Ctrl-C in the middle of an answer: the chat goes on, and the caches are sound.

    The next answer begins as a new process's does; further on, rows computed in batches of
    other sizes may part at a near-tie.
    """
    ran = CliRunner().invoke(main, ["run", QUESTION, "--temp", "0", "-c", "1024", "-n", "16"])
    wanted = ran.stdout[:24]
    terminal.sendline("Tell me a very long story about the sea and its ships.")
    terminal.expect(r"ships\.[\s\S]*\r\n[^\x1b\r\n]*\w+ \w+ \w+ \w+")  # the answer has begun
    terminal.sendintr()
    terminal.expect(STATUS + "interrupted")
    terminal.expect(">>>")
    terminal.sendline("/reset")
    terminal.expect("forgotten")
    terminal.sendline("/set max_tokens 16")
    terminal.expect("max_tokens: 16")
    terminal.sendline(QUESTION)
    terminal.expect(STATUS)
    assert wanted in plain(terminal.before)
    terminal.expect(">>>")
    terminal.sendeof()
    assert ended(terminal) == 0


def test_ctrl_c_twice_leaves(terminal):
    """At the prompt the first Ctrl-C explains, the second leaves."""
    terminal.sendintr()
    terminal.expect("/exit leaves|or type")
    terminal.expect(">>>")
    terminal.sendintr()
    assert ended(terminal) == 0


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
    assert ended(terminal) == 0
    again = program_in_terminal("chat", "-c", "512", env=os.environ)
    again.expect(">>>")
    again.send("\x1b[A\x1b[A\r")
    again.expect("system prompt: remembered words")


HOSTILE = (
    "\x1b]0;title\x07 \x1b[2J \x9b31m \x9d52;c;aGk=\x9c \x1bP+q\x1b\\ "
    "a\rb \x08\x7f\x00 \u202eabc\u202c"
)
SHOWN = "]0;title [2J 31m 52;c;aGk= P+q\\ ab  abc"


class OnTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def terminals(monkeypatch):
    """stdout and stderr as terminals without colour. (No fixture: pytest sets both after those.)"""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out, err = OnTerminal(), OnTerminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


@pytest.mark.parametrize("dim", [False, True])
def test_control_sequences_of_an_answer_are_not_sent(monkeypatch, dim):
    """Colours, titles, the clipboard, queries, C1, overwriting: whole, or split anywhere."""
    out, _ = terminals(monkeypatch)
    screen = Screen()
    for size in (1, 2, 3, len(HOSTILE)):
        out.truncate(0)
        out.seek(0)
        for k in range(0, len(HOSTILE), size):
            screen.write(HOSTILE[k : k + size], dim=dim)
        screen.end_answer()
        assert out.getvalue() == SHOWN + "\n"
    out.truncate(0)
    out.seek(0)
    screen.write("a\tb\nc é 漢 👍🏽 שלום", dim=dim)
    screen.end_answer()
    assert out.getvalue() == "a\tb\nc é 漢 👍🏽 שלום\n"


def test_notes_and_tables_show_them_as_text(monkeypatch):
    """File names, metadata and what was said, printed back."""
    _, err = terminals(monkeypatch)
    screen = Screen()
    screen.note(f"saved to {HOSTILE}")
    screen.error(f"needed {HOSTILE}")
    screen.table([("name", HOSTILE)])
    said = err.getvalue()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said)
    assert said.count("\\u001b]0;title\\u0007") == 3
    assert said.count("a\\u000db") == 3


def test_rows_of_a_table_end_with_their_text(monkeypatch):
    """No blanks behind it; a long value goes on below its beginning."""
    _, err = terminals(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    Screen().table([("a name", "some words " * 4), ("b", "1")])
    words = "some words some words some words"
    assert err.getvalue().splitlines() == [f"a name  {words}", "        some words", "b       1"]


def test_a_pipe_gets_the_answer_byte_for_byte(monkeypatch):
    """Who reads a pipe may want just these bytes."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    Screen().write(HOSTILE)
    assert out.getvalue() == HOSTILE


def test_json_shows_nothing_and_loses_nothing():
    """JSON for scripts may meet a terminal too: the same values, all of it printable."""
    line = as_json({"text": HOSTILE})
    assert json.loads(line) == {"text": HOSTILE}
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", line)


def test_a_hostile_file_is_only_shown(tmp_path):
    """`inspect`: a name with an escape sequence, in the metadata and as a path; also an error."""
    data = gguf_header(
        ("general.architecture", 8, gguf_text("llama\x1b[31m")),
        ("general.name", 8, gguf_text(HOSTILE)),
    )
    path = tmp_path / "a\x1b]0;b\x07.gguf"
    path.write_bytes(data)
    for words in (
        ["inspect", str(path)],
        ["inspect", "--json", str(path)],
        ["inspect", f"{path}x"],
    ):
        ran = CliRunner().invoke(main, words)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", ran.output)
        assert "\\u001b]0;b\\u0007" in ran.output


def test_an_answer_with_escapes_in_a_real_terminal(demo_files):
    """End to end: a model that says an escape sequence, because every other token is forbidden."""
    from llama_cpp import Llama

    llama = Llama(str(demo_files[0]), vocab_only=True, verbose=False)
    ids = [llama.tokenize(text, add_bos=False) for text in (b"\x1b", b"\x07")]
    llama.close()
    words = [word for (token,) in ids for word in ("--logit-bias", f"{token}+1000")]
    asked = ("run", "Hello", "-n", "6", "-c", "256", *words)
    # Where the cursor cannot be moved, no progress is shown: any escape would be the answer's.
    child = program_in_terminal(*asked, env={**os.environ, "NO_COLOR": "1"}, term="dumb")
    child.expect("6 tok")
    assert "\x1b" not in child.before
    assert "\x07" not in child.before
    assert ended(child) == 0
    piped = run(*PROGRAM, *asked, text=False)
    assert re.fullmatch(rb"[\x1b\x07]{6}\n", piped.stdout)
