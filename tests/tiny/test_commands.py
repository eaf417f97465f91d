"""Slash commands: settings by any name, files with their names, what was said before."""

from __future__ import annotations

import base64
import json
import signal
import sys

import pytest
from click.testing import CliRunner

from dspark_gguf.chat.keyboard import TerminalReader
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.terminal import PipeReader, Screen
from dspark_gguf.cli import main
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.pair import Pair
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

SETTINGS = {"limits": {"max_tokens": 4}, "speculation": {"mode": "off"}}


@pytest.fixture
def session(tiny_files):
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=512)) as pair:
        yield Session(pair, load_settings(None, SETTINGS))


def notes(session, *lines, attached=()):
    """What a chat says to these lines, and the files that wait after them."""
    screen = FakeScreen()
    chat = Chat(session, screen, FakeReader(*lines))
    chat.attached += attached
    chat.run()
    return screen.notes, chat.attached


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature", "temperature: 0.8  (default)"),
        ("/set temp 0.5", "temperature: 0.5"),
        ("/set --temp=0.5", "temperature: 0.5"),
        ("/set sampling.temperature = 0.5", "temperature: 0.5"),
        ("/set n 20", "max_tokens: 20"),
        ("/set predict 20", "max_tokens: 20"),
        ("/set max-tokens default", "max_tokens: null  (default)"),
        ("/set draft-max 4", "draft_max: 4"),
        ("/set -s 7", "seed: 7"),
        ("/set stop A,B", "stop: ['A,B']"),
        ("/set stop [A, B]", "stop: [A, B]"),
        ("/set stop the end", "stop: [the end]"),
        ("/spec off", "speculation off"),
        ("/spec", "speculation off"),
        ("/set temperture", "there is no setting temperture. Did you mean temperature? "
         "/set lists all of them."),
        ("/set nonsense 3", "there is no setting nonsense. /set lists all of them."),
        ("/set temp hot", "temperature cannot be hot. It takes a number."),
        ("/set spec off", "mode: off"),
        ("/set mode on", "mode: on"),
        ("/set markdown perhaps", "markdown cannot be perhaps. It takes on or off."),
        ("/undo 3", "/undo takes nothing. Type /undo; //undo 3 is a message."),
        ("/quit now", "/quit takes nothing. Type /quit; //quit now is a message."),
        ("/copy x", "/copy takes code or nothing. Type /copy or /copy code."),
        ("/set ctx-size 4096", "ctx-size is settled when the model is loaded. Leave with Ctrl-D "
         "and start again with --ctx-size."),
        ("/set model x.gguf", "model is settled when the model is loaded. Type /model NAME "
         "[DRAFT] to go on with another."),
        ("/set system Be brief.", "system has a command of its own. Type /system."),
        ("/spec onn", "/spec takes on, off or auto. Type /spec auto, for instance."),
        ("/histry", "there is no command /histry. Did you mean /history? /help lists the "
         "commands; //histry is a message."),
        ("/history x", "/history takes a number. Type /history or /history 3."),
        ("/copy", "there is nothing to copy. Type /copy or /copy code after an answer."),
    ],
)  # fmt: skip
def test_what_is_said_to_a_line(session, line, said):
    """One line each: the value, or what is wrong and what was probably meant."""
    assert notes(session, line)[0] == [said]


def test_a_setting_is_shown_and_reset(session):
    """A key alone changes nothing."""
    said, _ = notes(session, "/set seed 3", "/set seed", "/set seed default")
    assert said == ["seed: 3", "seed: 3", "seed: null  (default)"]


def test_models_and_settings_on_one_screen(session):
    """What differs from the defaults, and how another model is taken."""
    said, _ = notes(session, "/set temp 0", "Hello.", "/show", "/model", "/model a b c")
    assert "set temperature: 0.0" in said
    assert "set max_tokens: 4" in said
    assert not any(line.startswith("set top_k") for line in said)
    assert "messages 2" in said
    assert any(line.startswith("context ") and " of 512 tokens used" in line for line in said)
    assert said[-2].startswith("target ")
    assert said[-1] == "/model takes a model and perhaps a draft. Type /model NAME DRAFT."


def test_the_conversation_is_shown_again(session):
    """All of it, or its end."""
    session.messages = [
        {"role": role, "content": f"{role} {k}"} for k in "abc" for role in ("user", "assistant")
    ]
    assert notes(session, "/history 1")[0] == [">>> user c", "assistant c"]
    assert notes(session, "/history")[0][:2] == [">>> user a", "assistant a"]
    assert len(notes(session, "/history")[0]) == 6


def test_loading_shows_the_last_exchange(session, tmp_path):
    """Long messages are cut off."""
    messages = [
        {"role": "user", "content": "old"}, {"role": "assistant", "content": "older"},
        {"role": "user", "content": "new"}, {"role": "assistant", "content": "a line\n" * 30},
    ]  # fmt: skip
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": messages, "system": None}))
    said, _ = notes(session, f"/load {path}")
    assert said == [">>> new", "a line\n" * 8 + "…", f"loaded 4 messages from {path}"]


def test_files_come_with_their_names(session, tmp_path, monkeypatch):
    """Several, quoted, and by wildcards; the fence is longer than any in the text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.md").write_text("one\n")
    (tmp_path / "c.py").write_text("two\n````\n")
    (tmp_path / "d.py").write_text("three")
    said, waiting = notes(session, '/read "a b.md" c.py', "/read *.py", "/read a b.md")
    blocks = ["a b.md:\n```\none\n```", "c.py:\n`````\ntwo\n````\n`````", "d.py:\n```\nthree\n```"]
    assert waiting == [blocks[0], blocks[1], blocks[1], blocks[2], blocks[0]]
    assert said[0].startswith("a b.md, c.py: ")
    assert "tokens, with your next message; about " in said[0]
    left = [int(line.split("about ")[1].split(" of 512")[0]) for line in said]
    assert left == sorted(left, reverse=True)
    notes(session, "Compare.", attached=waiting[:2])
    assert session.last_message == f"{blocks[0]}\n\n{blocks[1]}\n\nCompare."
    assert notes(session, "/read none", attached=waiting)[1] == []
    assert "cannot read no.md" in notes(session, "/read no.md c.py")[0][0]
    assert "a quote is not closed" in notes(session, '/read "c.py')[0][0]


def test_files_that_are_too_long(session, tmp_path):
    """Said when they are named, not after the question; what waits goes on waiting."""
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("some words " * 200)
    short.write_text("some words " * 30)
    said, waiting = notes(session, f"/read {long}")
    assert "more than the context, which has 512" in said[0]
    assert waiting == []
    said, waiting = notes(session, f"/read {short}", f"/read {short}", "What?")
    assert said[-2] == "that is too much: /read none takes it back, /reset makes room"
    assert len(waiting) == 2
    assert session.messages == []


def test_save_asks_before_it_replaces(session, tmp_path):
    """Not in a pipe: a script means what it says."""
    path = tmp_path / "talk.json"
    path.write_text("mine")
    assert notes(session, f"/save {path}", "n")[0] == ["not saved"]
    assert path.read_text() == "mine"
    assert notes(session, f"/save {path}", "y")[0] == [f"saved 0 messages to {path}"]
    path.write_text("mine")
    with path.with_name("lines").open("wb+") as lines:
        lines.write(f"/save {path}\n".encode())
        lines.seek(0)
        Chat(session, FakeScreen(), PipeReader(lines)).run()
    assert path.read_text() != "mine"


class Keyboard(FakeReader):
    """Leaves a text as it is offered."""

    def edited(self, text):
        self.offered = text
        return text


def test_an_edit_begins_with_what_was_typed(session):
    """Two slashes, as the message was written; it stays the same message."""
    reader = Keyboard("//help me", "/edit")
    Chat(session, FakeScreen(), reader).run()
    assert reader.offered == "//help me"
    assert session.last_message == "/help me"


@pytest.mark.parametrize("key", [KeyboardInterrupt, EOFError])
def test_an_edit_can_be_left(session, monkeypatch, key):
    """By Ctrl-C and Ctrl-D, which end only that: no new answer, and the chat goes on."""
    session.messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    before = list(session.messages)

    def press(reader, prompt, default=""):
        raise key

    monkeypatch.setattr(TerminalReader, "line", press)
    terminal = TerminalReader(private=True)
    monkeypatch.setattr(FakeReader, "edited", lambda reader, text: terminal.edited(text))
    assert notes(session, "/edit", "/undo")[0] == ["left as it was", "taken back: hi"]
    assert session.messages == before[:0]


def test_copy_asks_the_terminal(session, monkeypatch):
    """OSC 52, with the last answer or its last block of code."""
    answer = "Two:\n```py\na = 1\n```\nand\n```\nb = 2\n```\n"
    session.messages = [
        {"role": "user", "content": "Code?"},
        {"role": "assistant", "content": answer},
    ]
    assert "only a terminal" in notes(session, "/copy")[0][0]
    written = []
    monkeypatch.setattr(sys.stdout, "write", written.append)
    screen = Screen()
    monkeypatch.setattr(Screen, "on_terminal", True)
    screen._out.file = sys.stdout
    Chat(session, screen, FakeReader("/copy", "/copy code")).run()
    sent = [text.removeprefix("\x1b]52;c;").removesuffix("\x07") for text in written]
    assert [base64.b64decode(each).decode() for each in sent] == [answer, "b = 2\n"]


def test_another_model_goes_on_with_the_conversation(tiny_files, tmp_path):
    """In the same chat; with the present one where the other cannot be loaded or is not there."""
    lines = ["Hello.", f"/model {tiny_files.wide}", "More.", "/history", "/model nowhere.gguf",
             f"/model {tiny_files.text}", f"/model {tiny_files.target} {tiny_files.draft}",
             "/show"]  # fmt: skip
    words = ["chat", "-m", str(tiny_files.target), "-n", "4", "-c", "512", "--no-learn"]
    done = CliRunner().invoke(main, words, input="\n".join(lines))
    said = done.stderr
    assert said.count("target wide") == 1, said
    assert ">>> Hello." in said
    assert ">>> More." in said
    assert "cannot read nowhere.gguf" in said
    assert "is not a GGUF model" in said
    *_, shown = said.split("is not a GGUF model")
    assert "\ndraft draft on CPU: " in shown
    assert "messages       4" in shown
    assert done.exit_code != 0  # two of its lines failed


def test_ctrl_c_while_another_model_loads(tiny_files, monkeypatch):
    """The chat goes on with the present one, and another one leaves it."""
    learned, calls = Pair.learned, []

    def interrupted(pair, *given, **named):
        calls.append(pair.target.name)
        if pair.target.name == "wide":
            signal.raise_signal(signal.SIGINT)
        return learned(pair, *given, **named)

    monkeypatch.setattr(Pair, "learned", interrupted)
    lines = ["Hello.", f"/model {tiny_files.wide}", "/show"]
    words = ["chat", "-m", str(tiny_files.target), "-n", "4", "-c", "512", "--no-learn"]
    done = CliRunner().invoke(main, words, input="\n".join(lines))
    assert done.exit_code == 0, done.output
    assert calls.count("wide") == 1
    assert calls[-1] == "target"
    assert "press Ctrl-C again to leave" in done.stderr
    assert "messages       2" in done.stderr
