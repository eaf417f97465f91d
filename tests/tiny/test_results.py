"""Results of `run --jsonl`: nothing is lost, nothing is there twice, nothing is mixed."""

from __future__ import annotations

import json
import os
import sys
import threading
from threading import Event
from types import SimpleNamespace

import pytest

from dspark_gguf.chat import answers, results, scripted
from dspark_gguf.chat.jobs import read_jobs, select_shard
from dspark_gguf.chat.results import results_in
from dspark_gguf.chat.terminal import Screen
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.settings_files import load_settings
from dspark_gguf.tally import Answer
from tests.children import run_python

WORDS = ["one", "two", "three", "four"]
FIXED = {"sampling": {"temperature": 0.5}, "model": "big.gguf"}


def answered(settings, job, fails=()):
    word, error = "", None
    try:
        word = job.messages[-1]["content"]
    except UsageError as problem:
        error = problem
    if word in fails:
        error = ResourceError("the context of 512 is full", "Use another.")
    pair = SimpleNamespace(target=SimpleNamespace(name="big"), caches={})
    return answers._outcome(pair, settings, Answer(text=f"{word}!", finish_reason="stop"), error)


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """Answers the jobs of a file without a model; `fails` and `stops` name prompts."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in WORDS))
    seen = []

    def run(out, tree=FIXED, keep_errors=False, fails=(), stops=(), part=None, unordered=False):
        def answer_all(pair, settings, jobs, parallel):
            for job in jobs:
                word = job.input.get("prompt")
                seen.append((word, settings.sampling.seed))
                if word in stops:
                    raise Cancelled
                yield job, answered(settings, job, fails)

        if not hasattr(scripted.answer_all, "is_backwards"):
            monkeypatch.setattr(scripted, "answer_all", answer_all)
        settings, todo = load_settings(None, tree), read_jobs(jobs)
        todo = select_shard(todo, part) if part else todo
        with results_in(out, todo, settings, keep_errors, unordered) as found:
            return scripted.run_batch(SimpleNamespace(interrupt=Event()), settings, todo, found)

    return SimpleNamespace(run=run, seen=seen, jobs=jobs, out=tmp_path / "out.jsonl")


def held(path):
    """Index -> text, or None for an error, in the order of the file."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(line["index"], line.get("text")) for line in lines]


WHOLE = [(k, f"{word}!") for k, word in enumerate(WORDS)]


def test_what_failed_is_tried_again(batch):
    """Exit code 1 until all are answered; in the end each is there once, in order."""
    assert batch.run(batch.out, fails=("two", "three")) == 1
    assert held(batch.out) == [WHOLE[0], (1, None), (2, None), WHOLE[3]]
    batch.seen.clear()
    assert batch.run(batch.out, fails=("three",)) == 1
    assert [word for word, _ in batch.seen] == ["two", "three"]
    assert held(batch.out) == [*WHOLE[:2], (2, None), WHOLE[3]]
    assert batch.run(batch.out) == 0
    assert held(batch.out) == WHOLE


def test_failures_can_stay(batch):
    """`--keep-errors`: nothing is tried again, and the exit code still says that they are there."""
    batch.run(batch.out, fails=("two",))
    before = batch.out.read_bytes()
    batch.seen.clear()
    assert batch.run(batch.out, keep_errors=True) == 1
    assert batch.seen == []
    assert batch.out.read_bytes() == before


def test_an_interrupted_retry_loses_nothing(batch):
    """What was finished stays, the failed ones are still to be done."""
    batch.run(batch.out, fails=("one", "two"))
    assert batch.run(batch.out, stops=("two",)) == Cancelled.exit_code
    assert held(batch.out) == [WHOLE[0], *WHOLE[2:]]
    assert batch.run(batch.out) == 0
    assert held(batch.out) == WHOLE


def test_a_resumed_run_goes_on_with_its_seed(batch):
    """A seed that was drawn is for all of the file; one that was given must be the same."""
    batch.run(batch.out, stops=("three",))
    batch.run(batch.out)
    assert len({seed for _, seed in batch.seen}) == 1
    with pytest.raises(UsageError, match=r"sampling\.seed"):
        batch.run(batch.out, tree={**FIXED, "sampling": {"temperature": 0.5, "seed": 1}})


OTHERS = {
    "model": {**FIXED, "model": "other.gguf"},
    "sampling.temperature": {**FIXED, "sampling": {"temperature": 0.6}},
    "sampling.logit_bias": {**FIXED, "sampling": {"temperature": 0.5, "logit_bias": {3: "-inf"}}},
    "limits.max_tokens": {**FIXED, "limits": {"max_tokens": 3}},
    "chat.system": {**FIXED, "chat": {"system": "Be brief."}},
    "target_options.cache_type_k": {**FIXED, "target_options": {"cache_type_k": "q8_0"}},
    "speculation.acceptance": {**FIXED, "speculation": {"acceptance": "typical"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_refused_by_name(batch, name):
    """A file holds texts that were made in one way; it is left as it was."""
    batch.run(batch.out, stops=("three",))
    before = batch.out.read_bytes()
    with pytest.raises(UsageError, match=rf"{name} .* there and .* now\. .*--output"):
        batch.run(batch.out, tree=OTHERS[name])
    assert batch.out.read_bytes() == before


def test_settings_of_speed_may_change(batch):
    """More threads, more room, another draft: the texts are the same."""
    batch.run(batch.out, stops=("three",))
    options = {"threads": 3, "n_ctx": 4096, "n_gpu_layers": 0}
    other = {**FIXED, "target_options": options, "draft": "d.gguf", "speculation": {"mode": "off"}}
    assert batch.run(batch.out, tree=other) == 0
    assert held(batch.out) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n\n",
        lambda data: data + b'{"index": 2, "inp',
        lambda data: data + b"\0\0\0",
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data + data,  # two runs at once, before there was a lock
    ],
    ids=["blank lines", "half a line", "zeros", "no last newline", "CRLF", "twice"],
)
def test_a_file_that_was_touched(batch, change):
    """What an editor, a power cut or another program did to the end of a line."""
    batch.run(batch.out, stops=("three",))
    batch.out.write_bytes(change(batch.out.read_bytes()))
    batch.seen.clear()
    assert batch.run(batch.out) == 0
    assert [word for word, _ in batch.seen] == ["three", "four"]
    assert held(batch.out) == WHOLE


@pytest.mark.parametrize(
    "text", [b"my only notes", b"GGUF\3\0\0\0\0", b'{"prompt": "one"}\n{"pro', b'{"ind\xff']
)
def test_a_file_of_something_else_stays(batch, text):
    """A name that was mistyped, such as a model's, costs no data."""
    batch.out.write_bytes(text)
    with pytest.raises(UsageError, match=r"is not a results file of these prompts \(line 1\)"):
        batch.run(batch.out)
    assert batch.out.read_bytes() == text
    assert batch.seen == []


def test_the_second_of_two_is_refused(batch):
    """Two runs into one file: a name and what to do; the lock goes with the run."""
    todo, settings = read_jobs(batch.jobs), load_settings(None, FIXED)
    with results_in(batch.out, todo, settings, False):
        with pytest.raises(UsageError, match=r"another run is writing to .*out\.jsonl\. Wait"):
            batch.run(batch.out)
        assert batch.seen == []
    assert batch.run(batch.out) == 0
    assert sorted(path.name for path in batch.out.parent.iterdir()) == ["jobs.jsonl", "out.jsonl"]


def test_a_lock_of_a_killed_run_is_none(batch):
    """The file is there, its holder is not."""
    batch.out.with_name(".out.jsonl.lock").touch()
    assert batch.run(batch.out) == 0


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), NotImplementedError("no flock here")]
)
def test_where_nothing_can_be_locked(batch, monkeypatch, capsys, error):
    """A read-only folder, a network disk without locks: it is said, and the run goes on."""

    class Lock:
        def __init__(self, path):
            pass

        def acquire(self, timeout):
            raise error

    monkeypatch.setattr(results, "FileLock", Lock)
    assert batch.run(batch.out) == 0
    assert "is not locked against other runs: " in capsys.readouterr().err
    assert held(batch.out) == WHOLE


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_named_pipe(batch, monkeypatch, capsys):
    """Results are written as they come; that nobody reads yet is said."""
    os.mkfifo(batch.out)
    said = threading.Event()
    monkeypatch.setattr("dspark_gguf.chat.terminal.PATIENCE", 0.0)
    note = Screen.note
    monkeypatch.setattr(Screen, "note", lambda self, line: (note(self, line), said.set()))
    got = []

    def read():
        said.wait(30)
        got.extend(json.loads(line) for line in batch.out.read_text("utf-8").splitlines())

    reader = threading.Thread(target=read)
    reader.start()
    assert batch.run(batch.out) == 0
    reader.join()
    assert [line["text"] for line in got] == [text for _, text in WHOLE]
    assert "waiting for a reader of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null"])
def test_devices(batch, capsys, tmp_path, name, monkeypatch):
    """They hold nothing to go on from."""
    if name == "/dev/null" and not os.path.exists(name):
        pytest.skip("not here")
    monkeypatch.chdir(tmp_path)
    assert batch.run(type(batch.out)(name)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == (
        [] if name == "/dev/null" else [text for _, text in WHOLE]
    )
    assert os.listdir() == ["jobs.jsonl"]


def test_a_stream_that_is_not_utf8(tmp_path):
    """JSON is escaped for it, so that it reads back."""
    code = (
        "from dspark_gguf.chat.results import Results\n"
        "with Results().writing() as write: write({'text': 'é 😀'})"
    )
    ran = run_python("-c", code, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, text=False)
    assert json.loads(ran.stdout.decode("ascii")) == {"text": "é 😀"}
