"""The folder of work: what it holds is the training's own, whole, and one training's at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dspark_gguf.errors import UsageError
from dspark_gguf.train.work import LIKELY, Conversation, Recorded, Recording, Work, divided

IDENTITY = {"target": ["t.gguf", 1]}
TALK = Conversation([1, 2], [3, 4, 5], 0.0, 2)


def recorded(talk):
    count = len(talk.tokens)
    kinds = (np.float16, (2, 4)), (np.int32, (LIKELY,)), (np.float16, (LIKELY,))
    return Recorded(*(np.full((count, *shape), talk.tokens[0], kind) for kind, shape in kinds))


def recording(folder, talks):
    return Recording(folder / "recorded", 2, 4, [len(each.tokens) for each in talks])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", '{"name": "of a browser", "manifest_version": 3}'),
        ("manifest.json", '{"identity": {"target'),
        ("manifest.json", "[]"),
        ("conversations.jsonl", '{"prompt": [1], "answer": [2], "temperature": 0, "start": 1}\nx'),
    ],
)
def test_what_is_of_something_else_is_refused_and_stays(name, text, tmp_path):
    """A folder without a manifest that holds conversations is not ours either."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json is missing, damaged, or not of a train"):
        Work(tmp_path, IDENTITY)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


@pytest.mark.parametrize("line", ["hello", '{"messages": []}', "{}"])
def test_a_damaged_line_is_named(line, tmp_path):
    """It is no last line that a killed process left."""
    Work(tmp_path, IDENTITY).add(TALK)
    with (tmp_path / "conversations.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UsageError, match=r"line 2 of .*conversations\.jsonl is damaged"):
        Work(tmp_path, IDENTITY)


def test_half_a_line_of_a_full_disk_is_taken_back(tmp_path, monkeypatch):
    """What is kept after it stands in a line of its own."""
    work = Work(tmp_path, IDENTITY)
    work.add(TALK)
    real = json.dumps

    def half(value):
        with (tmp_path / "conversations.jsonl").open("a") as file:
            file.write(real(value)[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", half)
    with pytest.raises(OSError, match="No space"):
        work.add(TALK)
    monkeypatch.undo()
    work.add(TALK)
    assert Work(tmp_path, IDENTITY).conversations == [TALK, TALK]


def test_a_recording_stands_as_far_as_it_is_of_the_conversations(tmp_path):
    """A lost line, or a file that a power cut left short, is recorded again, not read as zeros."""
    talks = [Conversation([k], [7] * k, 0.0, 1) for k in (3, 4, 5, 6)]
    made = recording(tmp_path, talks)
    for each in talks:
        made.append(recorded(each))
    assert len(recording(tmp_path, talks)) == 4
    assert len(recording(tmp_path, [*talks[:2], *talks[3:]])) == 2
    for _ in talks[2:]:
        made = recording(tmp_path, talks)
        made.append(recorded(talks[len(made)]))
    assert len(recording(tmp_path, talks)) == 4
    features = tmp_path / "recorded/features.bin"
    features.write_bytes(features.read_bytes()[:-1])
    found = recording(tmp_path, talks)
    assert len(found) == 3
    assert [int(found[k].ids[0, 0]) for k in range(3)] == [3, 4, 5]


def test_what_is_judged_on_is_long_enough_where_anything_is():
    """An answer that says nothing ended the training only after hours of data."""

    def talk(prompt, tokens, temperature, held=False):
        return Conversation([prompt], [7] * tokens, temperature, 1, held)

    short, long = talk(1, 3, 0.0, held=True), talk(2, 9, 0.0, held=True)
    others = [talk(3, 9, 1.0), talk(4, 9, 0.6), talk(4, 9, 0.0), talk(5, 4, 0.0), talk(4, 8, 0.0)]
    assert divided([short, long, *others], 5) == ([2, 3, 4, 6], [1])
    assert divided([short, *others], 5) == ([1], [3, 5])
    assert divided([short, others[0]], 5) == ([1], [])
    assert divided([short], 5) == divided([], 5) == ([], [])
