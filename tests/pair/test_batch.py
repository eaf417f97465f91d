"""`run --jsonl`: in order, resumable, nothing half written."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dspark_gguf.chat import scripted
from dspark_gguf.chat.jobs import read_jobs
from dspark_gguf.chat.results import results_in
from dspark_gguf.cli import main
from dspark_gguf.config import Settings
from dspark_gguf.errors import Cancelled, UsageError

LINES = [
    {"prompt": "Say one."},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    {"prompt": "Say three.", "id": "three"},
]


@pytest.fixture
def jobs_file(tmp_path):
    """Three prompts, with an empty line that does not count."""
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n")
    return path


@pytest.fixture
def batch(demo_files, jobs_file):
    """Runs the batch with these further words."""

    def run(*words):
        fixed = ["run", "--jsonl", str(jobs_file), "-n", "6", "--seed", "1", "-c", "512"]
        return CliRunner().invoke(main, [*fixed, *map(str, words)])

    return run


def test_results_in_order(batch):
    """Without --output the results go to stdout, one object a line, in the order of the input."""
    result = batch()
    assert result.exit_code == 0
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["input"] for r in results] == LINES
    assert [r["index"] for r in results] == [0, 1, 2]
    assert all(r["text"] and r["usage"]["completion_tokens"] <= 6 for r in results)


def test_resumes_without_redoing(batch, tmp_path, monkeypatch):
    """An interruption in the second job keeps the first result; the same command goes on."""
    out = tmp_path / "out.jsonl"
    asked = []
    real = scripted.answer_all

    def interrupted(pair, settings, jobs, parallel):
        asked.append([job.index for job in jobs])
        yield next(real(pair, settings, jobs, parallel))
        if len(jobs) == 3:
            raise Cancelled
        yield from real(pair, settings, jobs[1:], parallel)

    monkeypatch.setattr(scripted, "answer_all", interrupted)
    one = "--parallel", 1  # together they may part at a near-tie
    first = batch("-o", out, *one)
    assert first.exit_code == 130
    assert "1 of 3 finished" in first.stderr
    assert len(out.read_text().splitlines()) == 1
    out.write_text(out.read_text() + '{"index": 1, "inp')  # as a power cut would leave it

    assert batch("-o", out, *one).exit_code == 0
    assert asked == [[0, 1, 2], [1, 2]]
    resumed = [json.loads(line) for line in out.read_text().splitlines()]
    monkeypatch.undo()
    whole = [json.loads(line) for line in batch(*one).stdout.splitlines()]
    assert [r["tokens"] for r in resumed] == [r["tokens"] for r in whole]
    assert batch("-o", out).exit_code == 0  # nothing left to do
    assert len(out.read_text().splitlines()) == 3


def test_settings_of_a_line(batch, jobs_file, tmp_path):
    """They hold for this line alone, also when the file is resumed; others are refused by name."""
    lines = [
        {"prompt": "Say one.", "max_tokens": 2, "temperature": 0, "id": 7},
        {"prompt": "Say one.", "max_tokns": 2},
        {"prompt": "Say one.", "temperature": "hot"},
        {"prompt": "Say one.", "colour": "red", "metadata": {"any": 1}},
        {"prompt": "Say one.", "seed": 5},
    ]
    jobs_file.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out.jsonl"
    assert batch("-o", out).exit_code == 1
    short, typo, wrong, own, seeded = map(json.loads, out.read_text().splitlines())
    assert len(short["tokens"]) <= 2
    assert short["settings"]["sampling"]["temperature"] == 0
    assert typo["error"] == 'unknown key "max_tokns". Write "max_tokens".'
    assert "temperature" in wrong["error"]
    assert "metadata" in own["error"]
    assert seeded["settings"]["sampling"]["seed"] == 5
    assert batch("-o", out, "--keep-errors").exit_code == 1  # nothing left to do
    assert len(out.read_text().splitlines()) == 5


def test_a_prompt_that_does_not_fit_is_a_result_with_an_error(batch, jobs_file):
    """One bad prompt does not cost the others; the exit code says that it happened."""
    lines = [{"prompt": "word " * 600}, {"prompt": "Hi"}]
    jobs_file.write_text("\n".join(map(json.dumps, lines)))
    result = batch()
    assert result.exit_code == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert "a context of 512" in first["error"]
    assert second["text"]
    assert "1 of 2" in result.stderr


def test_results_of_other_prompts_are_refused(jobs_file, tmp_path):
    """Resuming into a file that belongs to something else would mix two sets."""
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps({"index": 0, "input": {"prompt": "other"}}) + "\n")
    jobs = read_jobs(jobs_file)
    with pytest.raises(UsageError, match="other"), results_in(out, jobs, Settings(), False):
        pass
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '["prompt"]',
        "{'prompt': 'x'}",
        '{"prompt": "x"',
    ],
)
def test_a_wrong_line_is_named_before_anything_runs(tmp_path, line):
    """The whole input is checked first: no night's work that ends at line 9,000."""
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(UsageError, match="line 2"):
        read_jobs(path)
