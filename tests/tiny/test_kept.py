"""Conversations kept under a name: whole, resumed without reading, and never by the wrong model."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import pytest
from click.testing import CliRunner

from dspark_gguf import Pair
from dspark_gguf.chat import saved, transcript
from dspark_gguf.chat.saved import SavedSession, list_sessions
from dspark_gguf.chat.session import Session
from dspark_gguf.cli import main
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import DSparkError, UsageError
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
def shelf(tmp_path, monkeypatch):
    """A data folder of its own for each test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "dspark-gguf" / "sessions"


@pytest.fixture
def dspark_alone():
    """Runs `dspark-gguf` with these words; no model is needed."""
    return lambda *words: CliRunner().invoke(main, list(words))


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


def resumed(files, name="talk", **changes):
    """What a second process finds: session, tokens in each cache, and what it says."""
    with pair_of(*files, **changes) as pair:
        session, kept = session_of(pair), SavedSession(name)
        said = kept.restore(session)
        held = {role: list(cache.tokens) for role, cache in pair.caches.items()}
        kept.close()
    return session, held, said


@pytest.fixture
def files(tiny_files):
    return tiny_files.target, tiny_files.draft


def test_a_second_process_reads_only_what_is_new(files):
    """It goes on as if there had been no end, with both caches full."""
    first, held, how = begin(files)
    assert how.startswith("with its caches, 0.1 MiB")
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession("talk")
        said = kept.restore(session)
        assert said == f"session talk: 4 messages, {len(held['target'])} tokens in the cache"
        assert {role: cache.tokens for role, cache in pair.caches.items()} == held
        answer = ask(session, "Three.")
        kept.close()
    with pair_of(*files) as pair:
        unbroken = session_of(pair)
        for text in ("One.", "Two."):
            ask(unbroken, text)
        wanted = ask(unbroken, "Three.")
    assert (answer.tokens, answer.cached_tokens) == (wanted.tokens, wanted.cached_tokens)
    assert answer.cached_tokens > 60  # of 71 and the new message
    assert session.messages[:-2] == first.messages


def test_a_block_draft_resumes_too(tiny_files, tmp_path):
    """Its cache is made of what the target passes on: it is kept with the target's, or not used."""
    files = tiny_files.target, write_dflash(tmp_path / "block.gguf")
    _, held, _ = begin(files)
    assert held["draft"]
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession("talk")
        kept.restore(session)
        assert pair.caches["draft"].tokens == held["target"]
        answer = ask(session, "Three.")
        assert answer.cached_tokens > 60
        kept.close()
    (tmp_path / "dspark-gguf" / "sessions" / "talk" / "draft.cache").unlink()
    with pair_of(*files) as pair:
        session = session_of(pair)
        SavedSession("talk").restore(session)
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
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession("talk")
        kept.restore(session)
        assert pair.caches["draft"].tokens == held["draft"]
        answer = ask(session, "AB")
        kept.close()
    with pair_of(*files) as pair:
        unbroken = session_of(pair)
        for text in ("One.", "Two."):
            ask(unbroken, text)
        wanted = ask(unbroken, "AB")
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
def test_a_damaged_cache_is_not_used(files, shelf, file):
    """One flipped bit in a number would change answers without a word; a short file cannot be."""
    _, held, _ = begin(files)
    path = shelf / "talk" / file
    whole = path.read_bytes()
    role = path.stem
    for damaged in (whole[:-1], whole[:40], b"", bytes([*whole[:-9], whole[-9] ^ 1, *whole[-8:]])):
        path.write_bytes(damaged)
        assert resumed(files)[1] == {**held, role: []}
    path.write_bytes(whole)
    assert resumed(files)[1] == held


def test_what_llama_cpp_refuses_leaves_an_empty_cache(files, shelf, tmp_path):
    """A file with a true checksum that is none of its own."""
    begin(files)
    record, path = shelf / "talk" / "caches.json", shelf / "talk" / "target.cache"
    values, whole = json.loads(record.read_text()), path.read_bytes()
    for damaged in (whole[:8] + b"\xff\xff\xff\xff" + whole[12:], b"", b"x" * 99):
        path.write_bytes(damaged)
        values["checksums"]["target"] = saved.checksum(path)
        record.write_text(json.dumps(values))
        with pair_of(*files) as pair:
            session, kept = session_of(pair), SavedSession("talk")
            kept.restore(session)
            assert pair.target_cache.tokens == []
            assert ask(session, "Three.").cached_tokens == 0
            kept.close()


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
def test_a_crash_at_any_point_of_saving_loses_nothing(files, shelf, monkeypatch, call, failure):
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
        found = transcript.read(shelf / "talk" / "chat.json")["messages"]
        assert found in (before, session.messages)
        assert not list((shelf / "talk").glob(".*.part"))
        restored, held, _ = resumed(files)
        assert restored.messages == found
        assert held["target"][:9] in ([], first.last_exchange[1][:9])
        before = found
    assert found == session.messages
    # The transcript, two caches, their record (a file and its folder each); once without a failure.
    assert calls == {"replace": 5, "fsync": 9}[call]


def test_what_a_killed_process_left_is_removed(shelf, files):
    """A half-written cache may be large: the next one who comes in deletes it."""
    begin(files)
    (shelf / "talk" / ".target.cache.0123abcd.part").write_bytes(b"x" * 1000)
    SavedSession("talk").close()
    assert sorted(path.name for path in (shelf / "talk").iterdir()) == [
        "caches.json", "chat.json", "draft.cache", "lock", "target.cache",
    ]  # fmt: skip


def test_caches_are_bounded(files, shelf, monkeypatch):
    """The oldest of other sessions make room, transcripts stay; without room there is no cache."""
    begin(files, "old")
    begin(files, "new")
    for name, time in (("old", 1), ("new", 2)):
        for path in (shelf / name).glob("*.cache"):
            os.utime(path, (time, time))
    size = sum(path.stat().st_size for path in (shelf / "new").glob("*.cache"))
    monkeypatch.setattr(saved, "MOST_BYTES", int(2.5 * size))
    begin(files, "newest")
    assert not list((shelf / "old").glob("*.cache"))
    assert len(list((shelf / "new").glob("*.cache"))) == 2
    assert resumed(files, "old")[2] == "session old: 4 messages"
    monkeypatch.setattr(saved, "MOST_BYTES", size // 2)
    assert begin(files, "large")[2] == "without its caches, which would take 0.1 MiB of the disk"
    monkeypatch.setattr(saved, "MOST_BYTES", 2**60)
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


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a" * 65, "a b", "a\0"])
def test_names_are_no_paths(name):
    """A name cannot lead out of the folder."""
    with pytest.raises(UsageError, match="is not a session name"):
        SavedSession(name)


def test_half_a_surrogate_is_kept(files):
    """What no UTF-8 exists for can be typed; the transcript is written and read all the same."""
    with pair_of(*files) as pair:
        session, kept = session_of(pair), SavedSession("talk")
        session.messages = [{"role": "user", "content": "a\udc80b"}]
        kept.write(session)
        kept.close()
        again = session_of(pair)
        SavedSession("talk").restore(again)
        assert again.messages == session.messages


def test_the_commands(dspark, files, shelf):
    """`chat --session` begins and goes on; `sessions` lists and deletes; flags go before what
    was kept."""
    words = ("chat", "--session", "fox", "--temp", 0, "-n", 4, "-c", 256, "--spec", "on")
    first = dspark(*words, "-m", files[0], "-d", files[1], "-sys", "Be.", stdin="Hello\n")
    assert first.exit_code == 0, first.output
    assert "session fox is saved with its caches" in first.stderr
    second = dspark("chat", "--session", "fox", "--top-k", 7, "-v", stdin="More\n/save\n")
    assert "session fox: 2 messages" in second.stderr
    assert "target target on CPU" in second.stderr
    assert "saved with its caches" in second.stderr
    values = json.loads((shelf / "fox" / "chat.json").read_text())
    assert len(values["messages"]) == 4
    assert values["settings"]["sampling"]["top_k"] == 7
    assert values["settings"]["limits"]["max_tokens"] == 4
    assert values["settings"]["chat"]["system"] == values["system"] == "Be."
    third = dspark("chat", "--session", "fox", "-sys", "Do.", "--show-config")
    assert "system: Do." in third.stdout
    listed = dspark("sessions").stdout
    assert listed == dspark("sessions", "list").stdout
    assert listed.startswith("fox ")
    assert "4 messages" in listed
    assert dspark("sessions", "rm", "fix").exit_code == 2
    assert "Saved sessions: fox." in dspark("sessions", "rm", "fix").stderr
    assert dspark("sessions", "rm", "fox").stdout == "deleted fox\n"
    assert (dspark("sessions").stdout, list_sessions()) == ("", [])


def test_a_damaged_transcript_is_named_and_kept(dspark, files, shelf):
    """It is the user's: nothing overwrites it."""
    begin(files)
    path = shelf / "talk" / "chat.json"
    path.write_text("{")
    result = dspark("chat", "--session", "talk", stdin="Hello\n")
    assert result.exit_code == 2
    assert f"{path} is not JSON" in result.stderr
    assert path.read_text() == "{"
    assert "damaged" in dspark("sessions").stdout


def test_what_else_is_in_the_place_of_a_session(shelf, tmp_path, dspark_alone):
    """Links, files, folders: the list survives, `rm` takes them away, and nothing behind a link."""
    said = json.dumps({"messages": []})
    (shelf / "good").mkdir(parents=True)
    (shelf / "good" / "chat.json").write_text(said)
    (shelf / "good" / "target.cache").symlink_to(tmp_path / "nothing")
    (shelf / "good" / "folder").mkdir()
    (shelf / "good" / "folder" / "file").write_text("x")
    (shelf / "file").write_text("x")
    (shelf / "dead").symlink_to(tmp_path / "nothing")
    (shelf / "circle").symlink_to(shelf / "circle")
    (shelf / "odd" / "chat.json").mkdir(parents=True)
    (shelf / "dangling").mkdir()
    (shelf / "dangling" / "chat.json").symlink_to(tmp_path / "nothing")
    (shelf / "begun").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "chat.json").write_text(said)
    (shelf / "linked").symlink_to(elsewhere)
    found = {entry.name: entry.messages for entry in list_sessions()}
    damaged = dict.fromkeys(("file", "dead", "circle", "odd", "dangling"))
    assert found == {"good": 0, "linked": 0, **damaged}
    listed = dspark_alone("sessions")
    assert listed.exit_code == 0
    assert listed.stdout.count("damaged") == 5
    assert dspark_alone("sessions", "rm", "begun").exit_code == 2
    removed = dspark_alone("sessions", "rm", *found)
    assert removed.exit_code == 0, removed.stderr
    assert [path.name for path in shelf.iterdir()] == ["begun"]
    assert (elsewhere / "chat.json").exists()


def test_a_file_in_the_place_of_all_sessions(shelf, dspark_alone):
    """A message, no traceback."""
    shelf.parent.mkdir(exist_ok=True)
    shelf.write_text("x")
    for words in (["sessions"], ["sessions", "rm", "talk"]):
        refused = dspark_alone(*words)
        assert refused.exit_code == 1
        assert "cannot write to" in refused.stderr


def test_files_are_found_from_any_folder(tmp_path, monkeypatch):
    """What names a file is kept with its whole path; what is itself the text stays."""
    names = {"chat": "chat_template", "sampling": "grammar", "speculation": "lookup_store"}
    tree = {"model": "file", **{section: {name: "file"} for section, name in names.items()}}
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    found = transcript.with_absolute_paths(load_settings(None, tree))
    assert found.model == str(tmp_path / "file")
    for section, name in names.items():
        assert getattr(getattr(found, section), name) == str(tmp_path / "file")
    text = load_settings(None, {"sampling": {"grammar": 'root ::= "a"' * 999}})
    assert transcript.with_absolute_paths(text) == text
