"""A turn that comes to nothing leaves the conversation as it was, whatever it was to replace."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from dspark_gguf.chat import transcript
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Session
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import ResourceError, UsageError
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

TREE = {
    "sampling": {"temperature": 0.0, "ignore_eos": True},
    "limits": {"max_tokens": 8},
    "speculation": {"mode": "off"},
}


@pytest.fixture(scope="module")
def pair(tiny_files):
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=256)) as loaded:
        yield loaded


def make(pair, **chat):
    pair.target_cache.trim(0)
    session = Session(pair, load_settings(None, {**TREE, "chat": chat}))
    for text in ("One.", "Two."):
        list(session.ask(text))
    return session


#: What may be asked for.
TURNS = {
    "ask": lambda session, text: session.ask(text),
    "edit": lambda session, text: session.edit(text),
    "reply": lambda session, text: session.reply(),
}


def cancelled(pair, patch):
    pair.interrupt.set()


def refused(pair, patch):
    patch.setattr(pair.target_cache, "n_ctx", 20)
    return ResourceError


def no_template(pair, patch):
    def render(*words):
        raise UsageError("the chat template refuses the messages", "See --help.")

    patch.setattr(pair.template, "render", render)
    return UsageError


def no_decoder(pair, patch):
    patch.setattr(Session, "decoder", property(lambda self: 1 / 0))
    return ZeroDivisionError


def ctrl_c(pair, patch):
    def strike(*words):
        raise KeyboardInterrupt

    patch.setattr(pair.target_cache, "decode", strike)
    return KeyboardInterrupt


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("fault", [cancelled, refused, no_template, no_decoder, ctrl_c])
@pytest.mark.parametrize("shift", [False, True])
def test_nothing_is_lost(pair, monkeypatch, turn, fault, shift):
    """Messages, the answers to them, what is forgotten, and the number of the answer."""
    session = make(pair, context_shift=shift)
    before = transcript.record(session), session.forgotten
    with monkeypatch.context() as patch:
        error = fault(pair, patch)
        rounds = TURNS[turn](session, "Two and a half.")
        if error is None:
            list(rounds)
        else:
            with pytest.raises(error):
                list(rounds)
    pair.interrupt.clear()
    assert (transcript.record(session), session.forgotten) == before
    list(session.ask("Three."))
    assert len(session.messages) == 6


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_that_nobody_listens_to_never_was(pair, turn):
    """Nothing is taken back before the first round is asked for."""
    session = make(pair)
    before = transcript.record(session)
    TURNS[turn](session, "Two and a half.").close()
    assert transcript.record(session) == before


def test_an_edit_counts_from_its_first_word_on(pair):
    """What was said until it was stopped replaces the old answer."""
    session = make(pair)
    rounds = session.edit("Two and a half.")
    said = ""
    while not said:
        said += next(rounds).text
    rounds.close()
    assert [m["content"] for m in session.messages[2:]] == ["Two and a half.", said]


class Impatient(FakeReader):
    """Presses Ctrl-C before the answers to some of its lines begin."""

    def __init__(self, pair, *lines):
        super().__init__(*lines)
        self.pair, self.stops = pair, False

    def line(self, prompt, default=""):
        line = super().line(prompt, default)
        self.stops = line.startswith("!")
        return line.removeprefix("!")

    @contextmanager
    def interruptible(self, interrupt):
        """In the place of `signals.interruptible`."""
        if self.stops:
            interrupt.set()
        yield
        interrupt.clear()


def test_in_the_chat(pair, tmp_path, monkeypatch):
    """The user is told, the transcript keeps the old turn, and an attached file goes on waiting."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    note = tmp_path / "note.txt"
    note.write_text("A note.")
    session, screen, kept = make(pair), FakeScreen(), SavedSession.last()
    before = list(session.messages)
    too_long = "/edit " + "too long " * 60
    lines = ["!/edit Not this.", "!/regen", too_long, f"/read {note}", "!And this?"]
    reader = Impatient(pair, *lines)
    monkeypatch.setattr("dspark_gguf.chat.loop.interruptible", reader.interruptible)
    chat = Chat(session, screen, reader, kept)
    chat.run()
    assert session.messages == transcript.read(kept.path)["messages"] == before
    assert screen.notes.count("no answer: the conversation is as it was before") == 3
    assert sum("a context of 256" in line for line in screen.notes) == 1
    chat.reader.lines = ["And this?"]
    chat.run()
    assert session.last_message == f"{note}:\n```\nA note.\n```\n\nAnd this?"
    assert chat.attached == []
    kept.close()
