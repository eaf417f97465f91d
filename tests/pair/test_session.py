"""Conversations on the demo pair: what is remembered, reused and forgotten."""

from __future__ import annotations

import json
import re

import pytest

from dspark_gguf.chat import transcript
from dspark_gguf.chat.commands import Leave
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import ResourceError, UsageError
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

N_CTX = 320


@pytest.fixture(scope="module")
def pair(demo_files):
    """The demo pair in a small context."""
    with Pair(*demo_files, ModelOptions(n_ctx=N_CTX), DraftOptions()) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tiny_pair(tiny_files):
    """For long answers, whatever they say."""
    files = tiny_files.target, tiny_files.draft
    with Pair(*files, ModelOptions(n_ctx=N_CTX), DraftOptions()) as loaded:
        yield loaded


@pytest.fixture
def session(pair):
    """A new greedy conversation."""
    pair.target_cache.trim(0)
    return make(pair)


def make(pair, **changes):
    tree = {"sampling": {"temperature": 0.0}, "limits": {"max_tokens": 24}, **changes}
    return Session(pair, load_settings(None, tree))


def say(rounds):
    return "".join(round.text for round in rounds)


def chat(session, *lines):
    """A chat that was fed these lines; returns what was shown."""
    screen = FakeScreen()
    Chat(session, screen, FakeReader(*lines)).run()
    return screen


def test_second_turn_reads_only_what_is_new(session, monkeypatch):
    """Turn 2 goes on from the tokens of turn 1, its answer included: both caches are reused."""
    say(session.ask("Name three colours, please, and one animal."))
    first = session.last
    decoded = []
    cache = session.decoder.target
    real = cache.decode
    monkeypatch.setattr(
        cache, "decode", lambda tokens, rows: decoded.append(len(tokens)) or real(tokens, rows)
    )
    say(session.ask("Now one."))
    second = session.last
    # The cache lacks only the newest token of turn 1 (the answer's last, or the end token).
    assert second.cached_tokens >= first.prompt_tokens + len(first.tokens) - 2
    assert decoded[0] == second.prompt_tokens - second.cached_tokens < 17


def test_a_shorter_second_turn_is_right(pair):
    """After an edit both caches hold a longer conversation than the new one: it is cut off."""
    longer = make(pair)
    say(longer.ask("Tell me a long story about a fox, a bear and a mouse in the forest."))
    edited = say(longer.edit("Say hello."))
    pair.target_cache.trim(0)
    fresh = make(pair)
    assert say(fresh.ask("Say hello.")) == edited


def test_undo_regen_and_reset(session):
    """History commands leave a conversation whose roles alternate."""
    say(session.ask("One."))
    say(session.ask("Two."))
    assert session.undo() == "Two."
    assert [m["role"] for m in session.messages] == ["user", "assistant"]
    before = session.messages[-1]["content"]
    assert say(session.reply()) == before  # greedy: the same again
    session.reset()
    assert session.messages == []
    with pytest.raises(UsageError):
        session.undo()
    with pytest.raises(UsageError):
        session.reply()


def test_an_abandoned_answer_is_kept_as_far_as_it_was_said(session):
    """A consumer that stops listening leaves a conversation that goes on."""
    rounds = session.ask("Count from one to twenty.")
    text = ""
    while len(text) < 10:
        text += next(rounds).text
    rounds.close()
    assert session.messages[-1] == {"role": "assistant", "content": text}
    assert say(session.ask("Say hello."))
    assert len(session.messages) == 4


def test_cancelled_before_a_word_leaves_no_trace(session):
    """A message whose answer was stopped at once is taken back, and an old answer stays."""
    session.pair.interrupt.set()
    say(session.ask("Hello."))
    session.pair.interrupt.clear()
    assert session.messages == []
    assert session.last.finish_reason == "cancelled"
    answer = say(session.ask("Hello."))
    session.pair.interrupt.set()
    say(session.reply())
    session.pair.interrupt.clear()
    assert session.messages[-1]["content"] == answer


def test_a_full_context_stops_with_a_message(tiny_pair):
    """By default nothing is forgotten: the answer ends with `context`, the next turn is refused."""
    sampling = {"temperature": 0.0, "ignore_eos": True}
    session = make(tiny_pair, limits={"max_tokens": None}, sampling=sampling)
    say(session.ask("Tell me a long story."))
    assert session.last.finish_reason == "context"
    assert session.last.prompt_tokens + len(session.last.tokens) == N_CTX
    messages = list(session.messages)
    with pytest.raises(ResourceError, match=f"a context of {N_CTX}"):
        say(session.ask("And then?"))
    assert session.messages == messages


def test_context_shift_keeps_the_system_prompt_and_the_newest_turns(tiny_pair):
    """With context shift the oldest turns are left out, and the talk goes on."""
    session = make(
        tiny_pair,
        chat={"context_shift": True, "system": "You are a pirate."},
        limits={"max_tokens": 60},
        sampling={"temperature": 0.0, "ignore_eos": True},
    )
    for k in range(6):
        assert say(session.ask(f"Message number {k}."))
        assert session.last.finish_reason == "length"
    assert 0 < session.forgotten < len(session.messages) == 12
    sent = tiny_pair.vocabulary.detokenize(tiny_pair.target_cache.tokens, special=True)
    assert "You are a pirate." in sent
    assert "Message number 5." in sent
    assert "Message number 0." not in sent


def test_context_shift_in_the_middle_of_an_answer(tiny_pair):
    """An answer that meets the end of the context goes on without the oldest turns."""
    session = make(
        tiny_pair,
        chat={"context_shift": True},
        limits={"max_tokens": 100},
        sampling={"temperature": 0.0, "ignore_eos": True},
    )
    say(session.ask("First message."))
    session.update({"limits": {"max_tokens": 190}})
    answer = say(session.ask("Second message."))
    assert session.last.finish_reason == "length"
    assert len(session.last.tokens) == 190
    assert session.forgotten == 2
    sent = tiny_pair.vocabulary.detokenize(tiny_pair.target_cache.tokens, special=True)
    assert sent.count("First message.") == 0 < sent.count("Second message.")
    assert answer.startswith(session.messages[-1]["content"][:20])


def test_thoughts_are_told_apart(session):
    """Text between think tags is shown dimmed, wherever the pieces of a tag fall."""
    from dspark_gguf.chat.think import ThinkSplitter

    text = "a <b><think>deep</think> said"
    for size in range(1, len(text)):
        splitter = ThinkSplitter()
        pieces = [text[k : k + size] for k in range(0, len(text), size)]
        parts = [part for piece in pieces for part in splitter.feed(piece)]
        parts += splitter.feed("", ends=True)
        thought = "".join(part for part, inside in parts if inside)
        said = "".join(part for part, inside in parts if not inside)
        assert (thought, said) == ("<think>deep</think>", "a <b> said")
    opened = ThinkSplitter(inside=True)
    assert list(opened.feed("hm</think>so")) == [("hm</think>", True), ("so", False)]


def test_slash_commands(session, tmp_path):
    """Each command does what /help says; a wrong one names the nearest."""
    path = tmp_path / "chat.json"
    note = tmp_path / "note.txt"
    note.write_text("The password is swordfish.")
    shown = chat(
        session, "Hello there.", "/set temperature 0.5", "/set top_k", "/system Be brief.",
        f"/save {path}", "/spec off", "/stats", f"/read {note}", "What is it?", "/undo",
        "/hlep", "/set nonsense 1", "/set top_p 9", "/think on", "/load missing.json", "/exit",
        "never reached",
    )  # fmt: skip
    text = "\n".join(shown.notes)
    assert "temperature: 0.5" in text
    assert "system prompt: Be brief." in text
    assert "saved 2 messages" in text
    assert "speculation off" in text
    assert "rounds without a draft" in text
    assert " tokens, with your next message; about " in text
    assert "taken back: " in text
    assert "Did you mean /help?" in text
    assert "there is no setting nonsense" in text
    assert "top_p cannot be 9" in text
    assert "chat template of this model cannot switch thinking" in text
    assert "missing.json" in text
    assert session.settings.sampling.temperature == 0.5
    assert "never reached" not in str(session.messages)


def test_saved_chats_come_back(session, tmp_path):
    """/load restores system prompt and messages; a damaged file changes nothing."""
    path = tmp_path / "chat.json"
    session.system = "Be kind."
    say(session.ask("Hello."))
    transcript.write(transcript.record(session), path)
    messages = list(session.messages)
    session.reset()
    session.system = None
    transcript.load(session, path)
    assert (session.system, session.messages) == ("Be kind.", messages)
    for damage in ("{", "[]", json.dumps({"messages": [{"role": "assistant", "content": "x"}]})):
        path.write_text(damage)
        with pytest.raises(UsageError):
            transcript.load(session, path)
        assert session.messages == messages
    with pytest.raises(UsageError):
        transcript.write(transcript.record(session), tmp_path / "no" / "folder.json")


def test_several_lines_and_slashes(session):
    """Trailing backslashes and triple quotes make one message; // escapes a slash."""
    session.update({"limits": {"max_tokens": 1}})
    chat(session, "one\\", "two", '"""', "three", 'four"""', "//five", "   ", '"""six')
    users = [m["content"] for m in session.messages if m["role"] == "user"]
    assert users == ["one\ntwo", "three\nfour", "/five", "six"]


def test_edit_without_text_offers_the_old_one(session):
    """/edit asks for the new text; /regen and /edit before any message are refused."""
    session.update({"limits": {"max_tokens": 2}})
    shown = chat(session, "/edit", "/regen", "Old.", "/edit", "New.", "/edit Newest.")
    assert [m["content"] for m in session.messages if m["role"] == "user"] == ["Newest."]
    assert sum("the conversation is empty" in note for note in shown.notes) == 2


def test_status_line_measures_plain_decoding(session):
    """The ratio appears once plain rounds were timed, and not before."""
    session.update({"limits": {"max_tokens": 20}, "sampling": {"ignore_eos": True}})
    session.update({"speculation": {"draft_min_prob": 0.0, "draft_max": 2}})
    first = chat(session, "Hello.").notes[-1]
    assert "20 tok" in first
    assert not re.search(r"\dx \(|plain", first)
    second = chat(session, "/spec off", "Hello.", "/spec on", "Hello.").notes
    assert " · plain · " in second[1]
    assert re.search(r"\d\.\d+x \(", second[-1])


def test_leave_is_no_error(session):
    """/bye and /quit are /exit."""
    from dspark_gguf.chat.commands import run_command

    for name in ("exit", "bye", "quit", "EXIT"):
        with pytest.raises(Leave):
            run_command(Chat(session, FakeScreen(), FakeReader()), f"/{name}")
