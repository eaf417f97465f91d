"""What a file of prompts asks for: records, parts of the file, and who is done first."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from dspark_gguf.chat import progress, scripted
from dspark_gguf.chat.jobs import Job, select_shard
from dspark_gguf.errors import Cancelled, UsageError
from dspark_gguf.settings_files import load_settings
from tests.tiny.test_results import FIXED, WHOLE, WORDS, answered, batch, held

__all__ = ["batch"]  # fixtures


@pytest.fixture
def backwards(monkeypatch, batch):
    """The last job is finished first; ended by Ctrl-C after so many."""

    seen = batch.seen

    def install(most=99):
        def answer_all(pair, settings, jobs, parallel):
            for job in list(reversed(jobs))[:most]:
                seen.append((job.input["prompt"], settings.sampling.seed))
                yield job, answered(settings, job)
            if most < len(jobs):
                raise Cancelled

        answer_all.is_backwards = True
        monkeypatch.setattr(scripted, "answer_all", answer_all)

    return install


def printed(capsys):
    """The words that were answered, as they were printed."""
    return [json.loads(line)["text"][:-1] for line in capsys.readouterr().out.splitlines()]


def test_what_finished_early_waits_for_its_turn(batch, backwards, capsys):
    """On stdout, unless its order is given up."""
    backwards()
    assert batch.run(None) == 0
    assert printed(capsys) == WORDS
    assert batch.run(None, unordered=True) == 0
    assert printed(capsys) == WORDS[::-1]


def test_what_waits_is_not_lost(batch, backwards, capsys):
    """At an interruption it is printed without those before it."""
    backwards(2)
    assert batch.run(None) == Cancelled.exit_code
    assert printed(capsys) == ["three", "four"]


def test_what_finished_early_is_in_the_file(batch, backwards):
    """At once, so that even a killed run keeps it; in the end the file is in order."""
    backwards(2)
    assert batch.run(batch.out) == Cancelled.exit_code
    assert held(batch.out) == WHOLE[2:]
    batch.seen.clear()
    backwards()
    assert batch.run(batch.out) == 0
    assert [word for word, _ in batch.seen] == ["two", "one"]
    assert held(batch.out) == WHOLE


def test_parts_of_a_file(batch, tmp_path):
    """Each has every job once, with its number in the whole; together they are the whole."""
    seeded = {**FIXED, "sampling": {"temperature": 0.5, "seed": 1}}
    parts = [tmp_path / f"{k}.jsonl" for k in (1, 2, 3)]
    for k, out in enumerate(parts, 1):
        assert batch.run(out, tree=seeded, part=f"{k}/3") == 0
    assert [held(out) for out in parts] == [[WHOLE[0], WHOLE[3]], [WHOLE[1]], [WHOLE[2]]]
    batch.out.write_bytes(b"".join(out.read_bytes() for out in parts))
    batch.seen.clear()
    assert batch.run(batch.out, tree=seeded) == 0
    assert batch.seen == []
    assert held(batch.out) == WHOLE


def test_a_part_goes_on(batch):
    """With its own file; the one of another part is refused."""
    assert batch.run(batch.out, part="1/2", stops=("three",)) == Cancelled.exit_code
    with pytest.raises(UsageError, match="other prompts"):
        batch.run(batch.out, part="2/2")
    batch.seen.clear()
    assert batch.run(batch.out, part="1/2") == 0
    assert [word for word, _ in batch.seen] == ["three"]
    assert held(batch.out) == WHOLE[::2]


def test_more_parts_than_jobs(batch):
    """The last ones are empty files."""
    assert batch.run(batch.out, part="5/6") == 0
    assert batch.out.read_bytes() == b""


@pytest.mark.parametrize(
    "part", ["0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3", "", f"1/{'9' * 5000}"]
)
def test_no_such_part(part):
    with pytest.raises(UsageError, match=r"--shard .* is not I/N with I from 1 to N\. Write"):
        select_shard([], part)


@pytest.mark.parametrize("words", [["--shard", ""], ["--parallel", 2], ["--unordered"]])
def test_options_of_batches_alone(dspark, words):
    """Refused, not ignored."""
    result = dspark("run", "Hello", *words)
    assert result.exit_code == 2
    assert f"{words[0]} works only with --jsonl" in result.stderr


def test_the_bar_tells_speed_and_time(monkeypatch):
    """Tokens a second of all answers, and what is left."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    seconds = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(progress, "perf_counter", lambda: next(seconds))
    assert list(progress.track([10, 30], 4, 2, tokens_of=int)) == [10, 30]
    text = re.sub(r"\x1b\[[?\d;]*\w", "", screen.getvalue())  # without colours
    shown = re.findall(r"\d/4|[\d.]+ tokens/s|[\d:-]+ left", text)
    assert shown[-3:] == ["4/4", "10.0 tokens/s", "0:00:00 left"]


WRONG = {
    '{"prompt": ""}': "prompt is empty",
    '{"prompt": 3}': "prompt must be text, not 3",
    '{"prompt": "x", "messages": null}': 'exactly one of "prompt" and "messages" is needed',
    '{"question": "x"}': 'exactly one of "prompt" and "messages" is needed',
    '{"messages": null}': "messages must be a list that is not empty, not null",
    '{"messages": []}': r"messages must be a list that is not empty, not \[\]",
    '{"messages": ["x"]}': r'messages\[0\] must be an object, not "x"',
    '{"messages": [{"role": "assistant", "content": "x"}]}': "last message must be the user's",
    '{"messages": [{"role": "bot", "content": "x"}]}': r'role in .*\[0\] must be .*, not "bot"',
    '{"messages": [{"role": "user"}]}': r"messages\[0\]\.content must be text, not null",
    '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': 'not "image_url"',
    '{"messages": [{"role": "user", "content": ["x"]}]}': "must be of type text, not null",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': r"content\[0\]\.text",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_record_is_a_failed_job(batch, line):
    """It says what is wrong with it, and the others are answered."""
    batch.jobs.write_text(f'{line}\n{{"prompt": "good"}}\n')
    assert batch.run(batch.out) == 1
    first, second = map(json.loads, batch.out.read_text().splitlines())
    with pytest.raises(AssertionError, match=WRONG[line]):
        raise AssertionError(first["error"])
    assert second["text"] == "good!"
    assert batch.run(batch.out) == 1  # and again, at every resume


def test_parts_of_text_are_one_text():
    """Content as OpenAI's chat API takes it; further keys go to the template."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    job = Job(0, {"messages": [{"role": "user", "content": parts, "name": "me"}]})
    assert job.messages == [{"role": "user", "content": "a\nb", "name": "me"}]


def test_a_line_is_told_what_is_wrong_with_its_settings():
    """In the words of the line, which knows no sections; biases of its own replace the run's."""
    below = load_settings(None, {"sampling": {"logit_bias": {5: 1.0}}})
    for record, said in (
        ({"temperature": "hot"}, "temperature is 'hot'. It takes a number."),
        ({"grammar": "a", "json_schema": "b"},
         "--grammar and --json-schema exclude each other. Leave one out."),
        ({"temprature": 1}, 'unknown key "temprature". Write "temperature".'),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            Job(0, record).settings(below)
        assert str(caught.value) == said
    assert Job(0, {"logit_bias": {}}).settings(below).sampling.logit_bias == {}
