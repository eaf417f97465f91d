"""Chats on a full disk, or in folders that cannot be made: what was said is not lost in silence."""

from __future__ import annotations

import json
import os
from subprocess import PIPE

import pytest

from tests.children import PROGRAM, ended, run
from tests.tiny.test_ends import ENDLESS, home, model, terminal, transcript

__all__ = ["home", "model"]  # fixtures


def limited(home, words, text, max_bytes=None):
    """The program, fed with text, in a process whose files may have so many bytes."""

    def limit():
        import resource

        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    return run(*PROGRAM, *words, input=text, env=home, encoding="latin-1", preexec_fn=limit)


def piped(home, model, *words, lines, max_bytes=None):
    """A chat that is fed lines."""
    words = [*ENDLESS, "-n", "4", "-m", str(model), *words]
    return limited(home, words, "\n".join(lines), max_bytes)


def test_other_files_on_a_full_disk(home, model, tmp_path):
    """A store of texts, and answers of a batch: one message, no file or whole lines."""
    note, store = tmp_path / "note.txt", tmp_path / "note.lookup"
    note.write_text("one two three " * 100)
    words = ["lookup", "build", str(note), "-o", str(store), "-m", str(model)]
    ran = limited(home, words, "", max_bytes=2000)
    assert ran.returncode == 1
    message = ran.stderr.splitlines()[-1]
    assert message.startswith(f"dspark-gguf: cannot read or write {store}")
    assert ": File too large. Check the path and the free space." in message
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out.jsonl"
    jobs.write_text('{"prompt": "a"}\n' * 9)
    words = ["run", "--jsonl", str(jobs), "-o", str(out), "-m", str(model), "-n", "1"]
    ran = limited(home, [*words, "--spec", "off", "-c", "256"], "", max_bytes=4000)
    assert ran.returncode == 1
    wanted = f"dspark-gguf: cannot write {out}: File too large. Free some space and run it again"
    assert ran.stderr.splitlines()[-1] == f"{wanted} to resume."
    ran = limited(home, [*words, "--spec", "off", "-c", "256"], "")
    assert ran.returncode == 0
    assert len([json.loads(line) for line in out.read_text("utf-8").splitlines()]) == 9


def test_a_disk_with_room_for_the_transcript_only(home, model):
    """The caches are left out with one word about it; the next process reads again."""
    ran = piped(home, model, "--session", "fox", lines=["One.", "Two."], max_bytes=8000)
    assert ran.returncode == 0, ran.stderr
    assert "session fox is saved without its caches: " in ran.stderr
    folder = os.path.join(home["XDG_DATA_HOME"], "dspark-gguf", "sessions", "fox")
    assert sorted(os.listdir(folder)) == ["chat.json", "lock"]
    again = piped(home, model, "--session", "fox", lines=["Three."])
    assert "session fox: 4 messages\n" in again.stderr
    assert len(transcript(home, "fox")) == 6


def test_a_disk_without_room_for_the_transcript(home, model):
    """One message, the answers come; what was kept before stays whole."""
    piped(home, model, "--session", "fox", lines=["One."])
    before = transcript(home, "fox")
    ran = piped(home, model, "--session", "fox", lines=["Two.", "Three."], max_bytes=500)
    assert ran.stderr.count("this conversation is not saved: cannot write ") == 2
    assert ran.stderr.count("4 tok ") == 2
    assert "Traceback" not in ran.stderr
    assert transcript(home, "fox") == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["run", "Hi"], ["run", "Hi", "--json"]])
def test_an_answer_on_a_full_disk(home, model, words, unbuffered):
    """Named as what it is, once, in what a shell redirects to; the exit code says it, too."""
    more = [*ENDLESS[1:], "-n", "4", "-m", str(model)] if "Hi" in words else []
    home["PYTHONUNBUFFERED"] = unbuffered
    with open("/dev/full", "w") as full:  # only the shell's part: nothing here is given its name
        ran = run(*PROGRAM, *words, *more, env=home, stdout=full, stderr=PIPE, capture_output=False)
    assert ran.returncode == 1
    wanted = "dspark-gguf: cannot read or write stdout: No space left on device."
    assert ran.stderr.splitlines()[-1] == f"{wanted} Check the path and the free space."
    assert "Exception" not in ran.stderr


@pytest.mark.parametrize("kind", ["CACHE", "DATA"])
def test_folders_that_cannot_be_made(home, model, tmp_path, kind):
    """A read-only home (a file in its place: root may write anywhere) is no reason not to chat."""
    (tmp_path / "file").write_text("")
    home[f"XDG_{kind}_HOME"] = str(tmp_path / "file" / "below")
    ran = piped(home, model, "--spec", "auto", "-c", "256", lines=["One."])
    assert ran.returncode == 0, ran.stderr
    assert "4 tok " in ran.stderr
    if kind == "DATA":
        child = terminal(home, model, "-n", "4")
        assert "this conversation will not be saved: cannot write to" in child.before
        assert "Make it writable, or set XDG_DATA_HOME to another folder." in " ".join(
            child.before.split()
        )
        child.sendline("/bye")
        assert ended(child) == 0


def test_leaving_with_a_full_disk_asks_once(home, model):
    """The transcript is in memory alone: /save FILE elsewhere is offered before it is gone."""
    child = terminal(home, model, "-n", "4", "--session", "fox")
    folder = os.path.join(home["XDG_DATA_HOME"], "dspark-gguf", "sessions", "fox")
    os.mkdir(os.path.join(folder, "chat.json"))  # nothing can replace a folder
    child.send("One.\r")
    child.expect("this conversation is not saved: cannot write ")
    child.expect(">>>")
    child.send("/save elsewhere.json\r")
    child.expect("saved 2 messages to elsewhere.json")
    child.expect(">>>")
    child.sendline("/bye")
    assert ended(child) == 0
    os.remove("elsewhere.json")
