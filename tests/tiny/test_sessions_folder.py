"""What is in the folder of saved sessions: commands, names, links, damage."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.chat import transcript
from dspark_gguf.chat.saved import SavedSession, list_sessions
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import load_settings
from tests.tiny.test_sessions import begin, pair_of, session_of


@pytest.fixture(autouse=True)
def sessions(tmp_path, monkeypatch):
    """A data folder of its own for each test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "dspark-gguf" / "sessions"


@pytest.fixture
def files(tiny_files):
    return tiny_files.target, tiny_files.draft


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


def test_a_session_that_nobody_changed(dspark, files):
    """It says so at its end."""
    words = ("chat", "--session", "fox", "-m", files[0], "-c", 256, "-n", 2, "--spec", "off")
    assert "session fox is saved with its caches" in dspark(*words, stdin="Hello.\n").stderr
    again = dspark("chat", "--session", "fox", stdin="/history\n").stderr
    assert "session fox is unchanged\n" in again


def test_the_commands(dspark, files, sessions):
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
    values = json.loads((sessions / "fox" / "chat.json").read_text())
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
    assert "no saved sessions" in dspark("sessions").stderr


def test_a_damaged_transcript_is_named_and_kept(dspark, files, sessions):
    """It is the user's: nothing overwrites it."""
    begin(files)
    path = sessions / "talk" / "chat.json"
    path.write_text("{")
    result = dspark("chat", "--session", "talk", stdin="Hello\n")
    assert result.exit_code == 2
    assert f"the session talk is damaged: {path} is not JSON" in result.stderr
    assert "Delete it with `dspark-gguf sessions rm talk`." in result.stderr
    assert path.read_text() == "{"
    assert "damaged" in dspark("sessions").stdout


def test_a_session_that_cannot_be_read(sessions):
    """It is not damaged: nobody should delete it."""
    kept = SavedSession("talk")
    (sessions / "talk" / "chat.json").mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*\. Check the path\."):
        kept.settings()
    kept.close()


def test_a_list_makes_no_folder(sessions, dspark):
    """A read-only home has no sessions, and that is no error."""
    listed = dspark("sessions")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "Saved sessions: none." in dspark("sessions", "rm", "fox").stderr
    assert not sessions.parent.exists()


def test_what_else_is_in_the_place_of_a_session(sessions, tmp_path, dspark):
    """Links, files, folders: the list survives, `rm` takes them away, and nothing behind a link."""
    said = json.dumps({"messages": []})
    (sessions / "good").mkdir(parents=True)
    (sessions / "good" / "chat.json").write_text(said)
    (sessions / "good" / "target.cache").symlink_to(tmp_path / "nothing")
    (sessions / "good" / "folder").mkdir()
    (sessions / "good" / "folder" / "file").write_text("x")
    (sessions / "file").write_text("x")
    (sessions / "dead").symlink_to(tmp_path / "nothing")
    (sessions / "circle").symlink_to(sessions / "circle")
    (sessions / "odd" / "chat.json").mkdir(parents=True)
    (sessions / "dangling").mkdir()
    (sessions / "dangling" / "chat.json").symlink_to(tmp_path / "nothing")
    (sessions / "begun").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "chat.json").write_text(said)
    (sessions / "linked").symlink_to(elsewhere)
    found = {entry.name: entry.messages for entry in list_sessions()}
    damaged = dict.fromkeys(("file", "dead", "circle", "odd", "dangling"))
    assert found == {"good": 0, "linked": 0, **damaged}
    listed = dspark("sessions")
    assert listed.exit_code == 0
    assert listed.stdout.count("damaged") == 5
    assert dspark("sessions", "rm", "begun").exit_code == 2
    removed = dspark("sessions", "rm", *found)
    assert removed.exit_code == 0, removed.stderr
    assert [path.name for path in sessions.iterdir()] == ["begun"]
    assert (elsewhere / "chat.json").exists()


def test_a_file_in_the_place_of_all_sessions(sessions, dspark):
    """A message, no traceback."""
    sessions.parent.mkdir(exist_ok=True)
    sessions.write_text("x")
    for words in (["sessions"], ["sessions", "rm", "talk"]):
        refused = dspark(*words)
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
