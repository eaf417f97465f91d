"""A scripted chat, repeated with a fault at the first, second, third ... pass of its models."""

from __future__ import annotations

import itertools
import re
import sys

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Pair, load_pair
from dspark_gguf.chat import transcript
from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Session
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import DSparkError, ResourceError
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

#: A problem and a hint; three clauses where they are not converted yet.
ERROR = r"^[^.].*\. [A-Z].*\.$"

EXACT = {
    "n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
TREE = {
    "sampling": {"temperature": 0.0, "ignore_eos": True},
    "limits": {"max_tokens": 6},
    "speculation": {"mode": "on", "drafter": "model", "draft_min_prob": 0.0, "draft_max": 3},
}
SCRIPT = ("One.", "Two.", "/regen", "/edit Two and a half.", "Three.")


class ClumsyError(RuntimeError):
    """An error that nobody expects."""


#: What a pass does instead: before or after its work, return a status or raise.
FAULTS = {
    "the cache is full": (False, 1),
    "the input is refused": (False, -1),
    "aborted": (False, 2),
    "aborted half way": (True, 2),
    "failed half way": (True, -3),
    "no memory for Python": (False, MemoryError()),
    "an unexpected error": (True, ClumsyError("unexpected")),
    "Ctrl-C": (True, KeyboardInterrupt()),
    "a signal to end": (True, SystemExit(143)),
}


class Passes:
    """`llama_decode`, counting; one call of it has the fault."""

    def __init__(self, monkeypatch):
        self.real, self.count, self.at, self.fault = llama_cpp.llama_decode, 0, None, None
        monkeypatch.setattr(llama_cpp, "llama_decode", self)

    def arm(self, at, fault):
        self.count, self.at, self.fault = 0, at, fault

    def __call__(self, context, batch):
        self.count += 1
        if self.count != self.at:
            return self.real(context, batch)
        works, result = self.fault
        if works:
            self.real(context, batch)
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture(scope="module")
def pair(tiny_files):
    options = ModelOptions(**EXACT), DraftOptions(**EXACT)
    with Pair(tiny_files.target, tiny_files.draft, *options) as loaded:
        loaded.draft_cache()
        yield loaded


@pytest.fixture
def passes(monkeypatch):
    return Passes(monkeypatch)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return SavedSession.last()


def talk(pair, kept):
    """The scripted chat on empty caches: its session, what was shown, how it ended."""
    for cache in pair.caches.values():
        cache.trim(0)
    pair.interrupt.clear()
    session, screen, end = Session(pair, load_settings(None, TREE)), FakeScreen(), None
    try:
        Chat(session, screen, FakeReader(*SCRIPT), kept).run()
    except (MemoryError, ClumsyError, SystemExit) as error:
        end = error
    return session, screen, end


def require_sound(session, kept):
    """Roles alternate, the kept transcript is that of the session, and the caches are true."""
    roles = [message["role"] for message in session.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    if session.messages:
        assert transcript.read(kept.path)["messages"] == session.messages
    for _ in session.ask("Four."):
        pass
    prompt = session.last_exchange[1][: session.last.prompt_tokens]
    for cache in session.pair.caches.values():
        cache.trim(0)
    settings = session.settings
    fresh = Decoder.for_pair(session.pair, settings.sampling, settings.speculation)
    assert fresh.answer(prompt, settings.limits).tokens == session.last.tokens


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_pass(pair, passes, kept, name):
    """The chat goes on after one message, or ends; nothing said before is lost, caches are true."""
    fault = FAULTS[name]
    result = fault[1]
    whole, _, _ = talk(pair, kept)
    total = passes.count
    assert total > 30
    for at in range(1, total + 1):
        passes.arm(at, fault)
        session, screen, end = talk(pair, kept)
        passes.arm(None, None)
        said = [note for note in screen.notes if re.match(ERROR, note)]
        if isinstance(result, KeyboardInterrupt | int):
            assert end is None
            users = [m["content"] for m in session.messages if m["role"] == "user"]
            assert users[-1] == "Three." or session.last_message != "Three."
            assert len(said) == (0 if isinstance(result, KeyboardInterrupt) else 1)
            assert len(session.messages) >= len(whole.messages) - 2
        else:
            assert type(end) is type(result)
            assert any("saved; resume" in note for note in screen.notes) == bool(session.messages)
        require_sound(session, kept)


def test_no_memory_at_every_step_of_loading(tiny_files, monkeypatch):
    """Weights and cache of target and draft: one message each, and the next try works.

    A draft without room for its cache gives way.
    """
    for function in ("llama_model_load_from_file", "llama_init_from_model"):
        real = getattr(llama_cpp, function)
        for at in (0, 1):
            calls = itertools.count()

            def fail(*words, real=real, calls=calls, at=at):
                return None if next(calls) == at else real(*words)

            with monkeypatch.context() as patch:
                patch.setattr(llama_cpp, function, fail)
                if (function, at) == ("llama_init_from_model", 1):
                    with load_pair(tiny_files.target, tiny_files.draft) as pair:
                        assert pair.draft_cache() is None
                        [note] = [note for note in pair.notes if "is not loaded" in note]
                        assert note.startswith("not enough memory for a context of 256 tokens")
                    continue
                with pytest.raises(DSparkError, match=ERROR):
                    load_pair(tiny_files.target, tiny_files.draft).draft_cache()
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        assert pair.draft_cache()


def test_a_draft_that_cannot_be_loaded_leaves_the_chat_as_it_was(tiny_files, kept, monkeypatch):
    """`/spec on` in the middle of a chat, without the memory for it."""
    off = {**TREE, "speculation": {"mode": "off"}}
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", lambda *words: None)
        session, screen = Session(pair, load_settings(None, off)), FakeScreen()
        Chat(session, screen, FakeReader("One.", "/spec on", "/spec off", "Two."), kept).run()
        assert sum(bool(re.match(ERROR, note)) for note in screen.notes) == 1
        assert len(session.messages) == 4


def test_a_cache_that_is_smaller_than_it_says(pair, kept, monkeypatch):
    """llama.cpp itself finds no place in the middle of a verification: the answer ends there."""
    for cache in pair.caches.values():
        cache.trim(0)
    monkeypatch.setattr(pair.target_cache, "n_ctx", 10_000)
    tree = {**TREE, "limits": {"max_tokens": None}}
    session, screen = Session(pair, load_settings(None, tree)), FakeScreen()
    Chat(session, screen, FakeReader("One."), kept).run()
    assert sum("tokens is full. Use a larger --ctx-size" in note for note in screen.notes) == 1
    assert transcript.read(kept.path)["messages"] == session.messages
    assert len(session.messages) == 2
    assert pair.target_cache.length <= 256
    session.reset()
    monkeypatch.undo()


CLOCKS = {
    "stands still": lambda k: 7.0,
    "goes backwards": lambda k: 1e6 - k * 0.01,
    "jumps forward": lambda k: k * 0.001 + 86400.0 * (k // 7),
    "jumps both ways": lambda k: k * 0.001 + 3600.0 * (-1) ** (k // 5),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_that_jumps(pair, kept, monkeypatch, name):
    """A laptop that sleeps, a clock that is set: the same tokens, and a status line."""
    tree = {**TREE, "speculation": {"learn": False}}
    lines = ("/set max_tokens 40", "One.", "Two.", "/stats")

    def chat():
        for cache in pair.caches.values():
            cache.trim(0)
        session, screen = Session(pair, load_settings(None, tree)), FakeScreen()
        Chat(session, screen, FakeReader(*lines), kept).run()
        return session, screen

    wanted, _ = chat()
    ticks = itertools.count()
    for module in [module for key, module in sys.modules.items() if key.startswith("dspark_gguf")]:
        if hasattr(module, "perf_counter"):
            monkeypatch.setattr(module, "perf_counter", lambda: CLOCKS[name](next(ticks)))
    session, screen = chat()
    assert session.messages == wanted.messages
    assert sum("tok/s" in note for note in screen.notes) == 2
    costs = pair.learned(session.settings.speculation).costs
    assert np.isfinite(costs.target_seconds).all()
    assert (costs.target_seconds > 0).all()
    assert next(ticks) > 10


def test_a_full_context_is_no_fault(pair):
    """The limit is met before llama.cpp meets it."""
    with pytest.raises(ResourceError, match="a context of 256"):
        Decoder.for_pair(pair).answer([1] * 256, Limits(max_tokens=1))
