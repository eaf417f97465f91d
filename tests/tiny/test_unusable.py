"""Settings that these models cannot honour: refused when they are set, left out when resumed."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.chat.loop import Chat
from dspark_gguf.chat.session import Session
from dspark_gguf.config import ModelOptions
from dspark_gguf.draft import Store
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import load_settings
from tests.fakes import FakeReader, FakeScreen

SETTINGS = {"limits": {"max_tokens": 4}}
SCHEMA = '{"type": "object", "properties": {}, "additionalProperties": false}'


@pytest.fixture
def session(tiny_files):
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=512)) as pair:
        yield Session(pair, load_settings(None, SETTINGS))


def said(session, *lines):
    """What a chat says to these lines."""
    screen = FakeScreen()
    Chat(session, screen, FakeReader(*lines)).run()
    return screen.notes


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/set drafter nonsense", "no drafter is called 'nonsense'"),
        ("/set drafter model", "--drafter model needs a draft model. Name one with -d"),
        ("/set grammar root ::= nothing", "cannot use the grammar"),
        ("/set grammar no-such-file", "neither text of this kind nor a file"),
        ("/set json_schema {", "cannot make a grammar from the JSON schema"),
        ("/set lookup_store no-such-file", "there is no store of texts at no-such-file"),
        ("/set logit_bias {99999: 1}", "99999"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(session, line, why):
    """Nothing changes: messages are answered, and all commands work."""
    before, key = session.settings, line.split()[1]
    refused, *rest = said(session, line, f"/set {key}", "Hello.", "/show", "/stats")
    assert why in refused
    assert "(default)" in rest[0]
    assert session.settings == before
    assert len(session.messages) == 2
    assert any(note.startswith("speculation auto") for note in rest)


def test_text_that_reads_as_something_else(session):
    """A JSON schema is YAML too; `no` may end an answer."""
    assert said(session, f"/set json_schema {SCHEMA}", "/set stop no") == [
        f"json_schema: '{SCHEMA}'",
        "stop: ['no']",
    ]
    assert session.settings.sampling.json_schema == SCHEMA


@pytest.mark.parametrize("how", ["default", "{}"])
def test_biases_are_taken_back(session, how):
    """They are not joined with those that were set."""
    notes = said(
        session, "/set logit_bias {5: 1}", "/set logit_bias {6: 2}", f"/set logit_bias {how}"
    )
    assert notes[1:] == ["logit_bias: {'6': 2.0}", "logit_bias: {}  (default)"]


def test_models_that_cannot_do_what_is_set_are_not_taken(tiny_files):
    """A drafter that needs a draft: the chat goes on with the present models."""
    settings = load_settings(
        None,
        {**SETTINGS, "speculation": {"drafter": "model"}, "model": str(tiny_files.target),
         "draft": str(tiny_files.draft)},
    )  # fmt: skip

    def load(settings):
        return Pair(settings.model, settings.draft, ModelOptions(n_ctx=512))

    screen = FakeScreen()
    chat = Chat(
        Session(load(settings), settings),
        screen,
        FakeReader(f"/model {tiny_files.wide}", "Hello."),
        load=lambda wanted: load(wanted),
    )
    chat.run()
    assert "needs a draft model" in " ".join(screen.notes)
    assert chat.session.settings == settings
    assert len(chat.session.messages) == 2
    chat.session.pair.close()


def test_a_session_resumes_without_what_cannot_be_used(tiny_files, tmp_path, monkeypatch, dspark):
    """A line says what is left out; the rest of its settings is as it was."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = tmp_path / "texts.store"
    with Pair(tiny_files.target, None, ModelOptions(n_ctx=64)) as pair:
        Store.of_texts([[1, 2, 3, 4]], 100, pair.vocabulary.fingerprint).save(store)
    words = ("chat", "--session", "bg", "-m", tiny_files.target, "-c", 512, "-n", 4, "--no-learn")
    first = dspark(*words, "--lookup-store", store, "--temp", 0.5, stdin="Hello.\n")
    assert first.exit_code == 0, first.output
    store.unlink()
    again = dspark("chat", "--session", "bg", stdin="/set temp\n/set lookup_store\nHello.\n")
    assert again.exit_code == 0, again.output
    assert "lookup_store is left out: there is no store of texts at" in again.stderr
    assert "temperature: 0.5" in again.stderr
    assert "lookup_store: null  (default)" in again.stderr
    kept = json.loads((tmp_path / "dspark-gguf/sessions/bg/chat.json").read_text())
    assert len(kept["messages"]) == 4
    assert kept["settings"]["speculation"]["lookup_store"] is None
    refused = dspark("chat", "--session", "bg", "--drafter", "nonsense", stdin="Hello.\n")
    assert refused.exit_code == 2
    assert "no drafter is called 'nonsense'" in refused.stderr


def test_a_python_session_refuses_too(session):
    """And keeps what works."""
    with pytest.raises(UsageError, match="nonsense"):
        session.update({"speculation": {"drafter": "nonsense"}})
    assert session.decoder
