"""Tests that load models."""

from __future__ import annotations

import pytest

from tests.crowd import Alone, write_models


@pytest.fixture(scope="session", autouse=True)
def quick(short_profile):
    """No time is spent on precise profiles."""


@pytest.fixture(autouse=True)
def a_draft_is_used(monkeypatch):
    """A tiny draft is as dear as its target, by a clock that no test depends on."""
    for module in ("assemble", "engine.pair"):
        monkeypatch.setattr(f"dspark_gguf.{module}.is_hopeless", lambda *_: False)
    monkeypatch.setattr("dspark_gguf.schedule.Optimal._may_win", lambda _: True)


@pytest.fixture
def shelf(model_folder):
    """A folder for a target, which is no program's store; the stores are empty."""
    folder = model_folder.parent / "shelf"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A target of every kind of memory, with its draft."""
    return write_models(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def alone(files):
    """Answers of one conversation at a time, by the kind of memory."""
    made = {}

    def of(kind):
        return made.setdefault(kind, Alone(files, kind))

    yield of
    for each in made.values():
        each.pair.close()
