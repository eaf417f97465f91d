"""Long work shows how far it is, and Ctrl-C keeps what was measured."""

from __future__ import annotations

import os
import signal
from threading import Event

import pytest
from click.testing import CliRunner

from dspark_gguf.catalog import suggest
from dspark_gguf.catalog.suggest import Candidate
from dspark_gguf.chat.progress import uninterrupted
from dspark_gguf.cli import main
from dspark_gguf.config import Settings
from dspark_gguf.errors import Cancelled
from dspark_gguf.measure import profile, trace
from dspark_gguf.measure.chains import load_chains


@pytest.fixture
def command(tiny_files):
    """Runs a command about the tiny pair."""

    def run(name, *words):
        pair = ["-m", tiny_files.target, "-d", tiny_files.draft, "-c", 256, "--no-learn"]
        return CliRunner().invoke(main, [name, *map(str, [*pair, *words])])

    return run


def stop_in_call(monkeypatch, module, name, number):
    """Press Ctrl-C while that function works for the n-th time."""
    original, calls = getattr(module, name), []

    def work(*given, **named):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*given, **named)

    monkeypatch.setattr(module, name, work)


def test_work_that_is_interrupted_ends_before_the_next_item():
    """What was done is done."""
    interrupt, seen = Event(), []
    for item in (items := uninterrupted("abc", interrupt)):
        seen.append(item)
        if item == "b":
            interrupt.set()
            break
    with pytest.raises(Cancelled):
        next(items)
    assert seen == ["a", "b"]


def test_a_trace_keeps_the_texts_that_are_done(command, monkeypatch, tmp_path):
    """The one that was broken off is left out; exit code 130."""
    stop_in_call(monkeypatch, trace, "Tracer", 3)
    words = ("-o", tmp_path / "chains.npz", "--positions", 4, "--depth", 2)
    done = command("trace", *words)
    assert done.exit_code == 130, done.output
    assert "interrupted: this is what was measured" in done.stderr
    assert len(load_chains(tmp_path / "chains.npz")) == 2


def test_a_trace_without_a_text_writes_nothing(command, monkeypatch, tmp_path):
    """And says nothing of an unexpected error."""
    stop_in_call(monkeypatch, trace, "Tracer", 1)
    done = command("trace", "-o", tmp_path / "chains.npz", "--positions", 4, "--depth", 2)
    assert done.exit_code == 130
    assert "unexpected" not in done.output
    assert not (tmp_path / "chains.npz").exists()


def test_a_profile_keeps_the_depths_that_are_done(command, monkeypatch):
    """Of two, one."""
    stop_in_call(monkeypatch, profile, "passes", 3)  # the target's and the draft's of the first
    done = command("profile", "--rows", 3, "--depth", 8, "--depth", 16)
    assert done.exit_code == 130, done.output
    assert "at 8: ms" in done.stdout
    assert "at 16: ms" not in done.stdout


def test_suggestions_estimate_what_was_not_measured(tiny_files, monkeypatch):
    """The first draft was measured, the second one was not reached."""
    stop_in_call(monkeypatch, suggest, "_measured", 3)  # the target's own costs are the first
    drafts = [
        Candidate(name, "x", "plain", 1000, tiny_files.draft) for name in ("one", "two", "three")
    ]
    settings = Settings.model_validate({"speculation": {"learn": False}})
    found = suggest.suggestions(tiny_files.target, drafts, settings, str)
    basis = {each.draft: each.speedup.basis for each in found}
    assert basis == {"one": "expected", "two": "estimated", "three": "estimated"}
