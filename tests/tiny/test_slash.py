"""Which messages are commands, typed and in a pipe, and that none is dropped in silence."""

from __future__ import annotations

import io
import re

import pytest

from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.terminal import PipeReader
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.pair import Pair
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

SETTINGS = {"limits": {"max_tokens": 4}, "speculation": {"mode": "off"}}
TEXT = [
    "/home/x/y is broken", "/etc/hosts", "/a.b", "// foo", "/* foo */", "//", "/", "/ help",
    "/24 of it", "/help/me", "///", "//TODO: this", "x/help", "/tmp is full", "/etc is a folder",
]  # fmt: skip

WRONG = re.compile("there is no command|cannot read|is not UTF-8")


@pytest.fixture
def session(tiny_files):
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=256)) as pair:
        yield Session(pair, load_settings(None, SETTINGS))


def said(session):
    return [message["content"] for message in session.messages if message["role"] == "user"]


@pytest.mark.parametrize("message", TEXT)
def test_text_that_begins_with_a_slash(session, message):
    """Paths, comments, numbers: said as they are, by either reader."""
    for reader in (FakeReader(message), PipeReader(io.BytesIO(message.encode()))):
        session.reset()
        Chat(session, FakeScreen(), reader).run()
        assert said(session) == [message]


def test_commands_and_how_to_say_one(session):
    """Any case, several blanks, several lines; a second slash makes a message of a word."""
    screen = FakeScreen()
    lines = ["/SYSTEM  Be\\", "brief.", "//help me", "//usr", "//usr is full", "/system\tnone"]
    Chat(session, screen, FakeReader(*lines)).run()
    assert said(session) == ["/help me", "/usr", "/usr is full"]
    assert screen.notes[0] == "system prompt: Be\nbrief."
    assert session.system is None


@pytest.mark.parametrize(
    "line", ["/hlep", "/hlep me", "/sys Be brief.", "/usr", "/load nothing.json", "caf\xe9"]
)
def test_a_line_that_fails(session, line):
    """It is said and the rest is done; in a pipe the exit code tells, in a terminal nobody asks."""
    lines = [line, "Hello."]
    for reader in (FakeReader(*lines), PipeReader(io.BytesIO("\n".join(lines).encode("latin-1")))):
        if isinstance(reader, FakeReader) and not line.isascii():
            continue
        session.reset()
        screen = FakeScreen()
        talk = Chat(session, screen, reader)
        if isinstance(reader, FakeReader):
            talk.run()
        else:
            with pytest.raises(SystemExit) as ended:
                talk.run()
            assert ended.value.code == 2
        assert said(session) == ["Hello."]
        assert any(WRONG.search(note) for note in screen.notes)
        if line.startswith("/hlep"):
            assert any("Did you mean /help?" in note for note in screen.notes)
        if line.startswith("/sys"):
            assert any("Did you mean /system?" in note for note in screen.notes)
        if line == "/usr":
            assert any("//usr is a message" in note for note in screen.notes)
