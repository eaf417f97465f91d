"""Conversations kept under a name: whole, resumed without reading, and never by the wrong model."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager, suppress

import pytest

from dspark_gguf import Pair
from dspark_gguf.chat import saved, transcript
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Session
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.paths import checksum
from dspark_gguf.settings_files import load_settings
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_heads import Made, write_mtp

EXACT = {"n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
SETTINGS = {
    "sampling": {"temperature": 0.0, "ignore_eos": True},
    "limits": {"max_tokens": 12},
    "speculation": {"mode": "on", "drafter": "model", "draft_min_prob": 0.0, "draft_max": 3},
}


@pytest.fixture(autouse=True)
def sessions(tmp_path, monkeypatch):
    """A data folder of its own for each test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "dspark-gguf" / "sessions"


def pair_of(target, draft, **changes):
    options = {**EXACT, **changes}
    return Pair(target, draft, ModelOptions(**options), DraftOptions(**options))


def session_of(pair, **changes):
    return Session(pair, load_settings(None, {**SETTINGS, **changes}))


def ask(session, text):
    for _ in session.ask(text):
        pass
    return session.last


def begin(files, name="talk", turns=("One.", "Two.")):
    """A first process: some turns, kept at the end."""
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession(name)
        for turn in turns:
            ask(session, turn)
            kept.write(session)
        how = kept.save(session)
        held = {role: list(cache.tokens) for role, cache in pair.caches.items()}
        kept.close()
    return session, held, how


@contextmanager
def reopened(files, name="talk", **changes):
    """A second process: its session, and what it says."""
    with pair_of(*files, **changes) as pair:
        session, kept = session_of(pair), SavedSession(name)
        yield session, kept.restore(session)
        kept.close()


def resumed(files, name="talk", **changes):
    """What a second process finds: session, tokens in each cache, and what it says."""
    with reopened(files, name, **changes) as (session, said):
        held = {role: list(cache.tokens) for role, cache in session.pair.caches.items()}
    return session, held, said


def unbroken(files, text):
    """The last answer of one process that says all."""
    with pair_of(*files) as pair:
        session = session_of(pair)
        return [ask(session, each) for each in ("One.", "Two.", text)][-1]


@pytest.fixture
def files(tiny_files):
    return tiny_files.target, tiny_files.draft


def test_a_second_process_reads_only_what_is_new(files):
    """It goes on as if there had been no end, with both caches full."""
    first, held, how = begin(files)
    assert how.startswith("saved with its caches, 0.1 MiB")
    with reopened(files) as (session, said):
        assert said == f"session talk: 4 messages, {len(held['target'])} tokens in the cache"
        assert {role: cache.tokens for role, cache in session.pair.caches.items()} == held
        answer = ask(session, "Three.")
    wanted = unbroken(files, "Three.")
    assert (answer.tokens, answer.cached_tokens) == (wanted.tokens, wanted.cached_tokens)
    assert answer.cached_tokens > 60  # of 71 and the new message
    assert session.messages[:-2] == first.messages


def test_a_block_draft_resumes_too(tiny_files, tmp_path):
    """Its cache is made of what the target passes on: it is kept with the target's, or not used."""
    files = tiny_files.target, write_dflash(tmp_path / "block.gguf")
    _, held, _ = begin(files)
    assert held["draft"]
    with reopened(files) as (session, _):
        assert session.pair.caches["draft"].tokens == held["target"]
        answer = ask(session, "Three.")
        assert answer.cached_tokens > 60
    (tmp_path / "dspark-gguf" / "sessions" / "talk" / "draft.cache").unlink()
    with reopened(files) as (session, _):
        again = ask(session, "Three.")
    assert again.tokens == answer.tokens
    assert again.cached_tokens == 0


@pytest.mark.parametrize("arch", ["hy_v3", "qwen35", "mimo2", "eagle3", "assistant"])
def test_heads_resume_too(tmp_path, arch):
    """With the pairs that were kept, at most one token is read twice, and as many guesses are
    right as without the break. An assistant has nothing to keep.
    """
    if arch == "eagle3":
        files = write_cycle_llama(tmp_path / "llama.gguf"), write_eagle3(tmp_path / "eagle.gguf")
    elif arch == "assistant":
        files = write_gemma4(tmp_path / "gemma.gguf"), write_assistant(tmp_path / "a.gguf")
    else:
        made = Made(arch, "cycle", heads=3 if arch == "mimo2" else 1)
        files = (write_mtp(tmp_path / "model.gguf", made),) * 2
    _, held, _ = begin(files)
    assert bool(held["draft"]) == (arch != "assistant")
    with reopened(files) as (session, _):
        assert session.pair.caches["draft"].tokens == held["draft"]
        answer = ask(session, "AB")
    wanted = unbroken(files, "AB")
    assert answer.cached_tokens >= wanted.cached_tokens - 1 > 60
    assert answer.tokens == wanted.tokens
    made, expected = answer.tally, wanted.tally
    assert (made.drafted, made.accepted) == (expected.drafted, expected.accepted)
    assert made.accepted > 5


def test_caches_of_other_models_are_not_used(files, tiny_files, tmp_path):
    """A changed file, another draft, another layout: read again, the transcript is there."""
    first, held, _ = begin(files)
    other_draft = resumed((files[0], tiny_files.target))
    assert other_draft[1] == {"target": held["target"], "draft": []}
    assert resumed(files, cache_type_k="f16")[1] == {"target": [], "draft": []}
    assert resumed(files, n_ctx=128)[1] == {"target": [], "draft": []}
    assert resumed(files, threads=1)[1] == held
    changed = shutil.copy(files[0], tmp_path / "target.gguf")
    os.utime(changed, ns=(0, 0))
    session, found, said = resumed((changed, files[1]))
    assert found == {"target": [], "draft": []}
    assert (session.messages, said) == (first.messages, "session talk: 4 messages")


@pytest.mark.parametrize("file", ["target.cache", "draft.cache"])
def test_a_damaged_cache_is_not_used(files, sessions, file):
    """One flipped bit in a number would change answers without a word; a short file cannot be."""
    _, held, _ = begin(files)
    path = sessions / "talk" / file
    whole = path.read_bytes()
    role = path.stem
    for damaged in (whole[:-1], whole[:40], b"", bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]])):
        path.write_bytes(damaged)
        assert resumed(files)[1] == {**held, role: []}
    path.write_bytes(whole)
    assert resumed(files)[1] == held


def test_what_llama_cpp_refuses_leaves_an_empty_cache(files, sessions, tmp_path):
    """A file with a true checksum that is none of its own."""
    begin(files)
    record, path = sessions / "talk" / "caches.json", sessions / "talk" / "target.cache"
    values, whole = json.loads(record.read_text()), path.read_bytes()
    for damaged in (whole[:8] + b"\xff\xff\xff\xff" + whole[12:], b"", b"x" * 99):
        path.write_bytes(damaged)
        values["checksums"]["target"] = checksum(path)
        record.write_text(json.dumps(values))
        with reopened(files) as (session, _):
            assert session.pair.target_cache.tokens == []
            assert ask(session, "Three.").cached_tokens == 0


class Crash(BaseException):
    """The process ends here."""


class Fails:
    """A function that fails once, after so many calls."""

    def __init__(self, real, after, failure):
        self.real, self.left, self.failure, self.happened = real, after, failure, False

    def __call__(self, *words):
        self.left -= 1
        if self.left == -1:
            self.happened = True
            raise self.failure
        return self.real(*words)


@pytest.mark.parametrize("failure", [Crash(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_at_any_point_of_saving_loses_nothing(files, sessions, monkeypatch, call, failure):
    """The transcript is the old one or the new one, whole; caches are right or not there."""
    first, _, _ = begin(files)
    before, failed, calls = first.messages, True, 0
    while failed:
        with pair_of(*files) as pair:
            session, kept = session_of(pair), SavedSession("talk")
            kept.restore(session)
            for _ in session.edit(f"Again {calls}."):
                pass
            with monkeypatch.context() as patch:
                fails = Fails(getattr(os, call), calls, failure)
                patch.setattr(os, call, fails)
                with suppress(Crash, DSparkError):
                    kept.save(session)
            kept.close()
        failed, calls = fails.happened, calls + 1
        found = transcript.read(sessions / "talk" / "chat.json")["messages"]
        assert found in (before, session.messages)
        assert not list((sessions / "talk").glob(".*.part"))
        restored, held, _ = resumed(files)
        assert restored.messages == found
        assert held["target"][:9] in ([], first.last_exchange[1][:9])
        before = found
    assert found == session.messages
    # The transcript, two caches, their record (a file and its folder each); once without a failure.
    assert calls == {"replace": 5, "fsync": 9}[call]


def test_what_a_killed_process_left_is_removed(sessions, files):
    """A half-written cache may be large: the next one who comes in deletes it."""
    begin(files)
    (sessions / "talk" / ".target.cache.0123abcd.part").write_bytes(b"x" * 1000)
    SavedSession("talk").close()
    assert sorted(path.name for path in (sessions / "talk").iterdir()) == [
        "caches.json", "chat.json", "draft.cache", "lock", "target.cache",
    ]  # fmt: skip


def test_caches_are_bounded(files, sessions, monkeypatch):
    """The oldest of other sessions make room, transcripts stay; without room there is no cache."""
    begin(files, "old")
    begin(files, "new")
    for name, time in (("old", 1), ("new", 2)):
        for path in (sessions / name).glob("*.cache"):
            os.utime(path, (time, time))
    size = sum(path.stat().st_size for path in (sessions / "new").glob("*.cache"))
    monkeypatch.setattr(saved, "MAX_BYTES", int(2.5 * size))
    begin(files, "newest")
    assert not list((sessions / "old").glob("*.cache"))
    assert len(list((sessions / "new").glob("*.cache"))) == 2
    assert resumed(files, "old")[2] == "session old: 4 messages"
    monkeypatch.setattr(saved, "MAX_BYTES", size // 2)
    assert (
        begin(files, "large")[2] == "saved without its caches, which would take 0.1 MiB of the disk"
    )
    monkeypatch.setattr(saved, "MAX_BYTES", 2**60)
    monkeypatch.setattr(saved, "LEAVE_FREE", 2**60)
    assert "would take" in begin(files, "full")[2]


def test_one_process_at_a_time(files):
    """Two chats in one session would overwrite each other's turns."""
    kept = SavedSession("talk")
    with pytest.raises(UsageError, match=r"open in another process \(\d+, since 2"):
        SavedSession("talk")
    kept.close()
    SavedSession("talk").close()
    first, second = SavedSession.last(), SavedSession.last()
    assert (first.name, second.name) == ("last", "last-2")


def test_a_chat_without_a_name_replaces_the_last_one_only_by_words(files):
    """Opening and leaving a chat must not delete what the one before said."""
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession.last()
        ask(session, "One.")
        kept.write(session)
        kept.close()
        kept = SavedSession.last()
        kept.save(session_of(pair))
        assert transcript.read(kept.path)["messages"] == session.messages
        assert kept.save(session) == ""  # no caches for what nobody asked to keep
