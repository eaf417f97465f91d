"""Prompts from a file of JSON lines, one job a line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dspark_gguf.chat.stdin import DASH, read_file
from dspark_gguf.config import Limits, Sampling, Settings
from dspark_gguf.errors import UsageError, nearest
from dspark_gguf.settings_files import merge, validate
from dspark_gguf.visible import shortened

Record = dict[str, Any]

#: Keys of a line that are not settings: its result repeats them.
_NOT_SETTINGS = ("prompt", "messages", "id", "custom_id", "metadata")
#: Sections of the settings that a line may override.
_SECTIONS = {"sampling": Sampling.model_fields, "limits": Limits.model_fields}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Job:
    """The JSON object on one line of the input; `index` does not count empty lines."""

    index: int
    input: Record

    def settings(self, below: Settings) -> Settings:
        """The run's settings with those of this line; a UsageError names the first wrong key."""
        tree: dict[str, Record] = {}
        for key, value in self.input.items():
            if key in _NOT_SETTINGS:
                continue
            section = next((name for name, keys in _SECTIONS.items() if key in keys), None)
            if section is None:
                known = [*_NOT_SETTINGS, *chain(*_SECTIONS.values())]
                raise UsageError(f"unknown key {_shown(key)}", _hint(nearest(key, known)))
            tree.setdefault(section, {})[key] = value
        return validate(merge(below.model_dump(), tree), "") if tree else below

    @property
    def messages(self) -> list[Record]:
        """The conversation to answer; a UsageError says what is wrong with it."""
        if ("prompt" in self.input) == ("messages" in self.input):
            raise _wrong('exactly one of "prompt" and "messages" is needed')
        if "prompt" in self.input:
            if not _text(self.input["prompt"], "prompt").strip():
                raise _wrong("prompt is empty")
            return [{"role": "user", "content": self.input["prompt"]}]
        messages = self.input["messages"]
        if not isinstance(messages, list) or not messages:
            raise _wrong(f"messages must be a list that is not empty, not {_shown(messages)}")
        out = [_message(message, f"messages[{k}]") for k, message in enumerate(messages)]
        if out[-1]["role"] != "user":
            raise _wrong(f"the last message must be the user's, not the {out[-1]['role']}'s")
        return out


def read_jobs(path: Path) -> list[Job]:
    """All lines of the input (``-``: stdin).

    A JSON object that is not a prompt makes only its own job fail. A line that is not a JSON
    object is a UsageError, because this must be another kind of file; so is an empty file.
    """
    jobs: list[Job] = []
    name = "stdin" if str(path) == DASH else path
    for number, line in enumerate(read_file(path).split("\n"), 1):
        if not line.strip():
            continue
        record = parse(line)
        if record is None:
            problem = f"line {number} of {name} is not a JSON object: {line[:60]}"
            raise UsageError(problem, 'Write {"prompt": ...} or {"messages": [...]} on each line.')
        jobs.append(Job(len(jobs), record))
    if not jobs:
        raise UsageError(f"{name} has no prompts", "Write one.")
    return jobs


def select_shard(jobs: Sequence[Job], part: str) -> list[Job]:
    """Shard ``I/N`` of the jobs: every N-th, from the I-th on, so that all shards are alike."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    first, step = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= step:
        problem = f"--shard {part!r} is not I/N with I from 1 to N"
        raise UsageError(problem, "Write for instance --shard 2/8.")
    return list(jobs[first - 1 :: step])


def parse(line: str | bytes) -> Record | None:
    """The JSON object on a line; None if the line holds anything else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(message: Any, place: str) -> Record:
    if not isinstance(message, dict):
        raise _wrong(f"{place} must be an object, not {_shown(message)}")
    if message.get("role") not in _ROLES:
        shown = _shown(message.get("role"))
        raise _wrong(f"the role in {place} must be {' or '.join(_ROLES)}, not {shown}")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{place}.content[{k}]") for k, part in enumerate(content))
    return {**message, "content": _text(content, f"{place}.content")}


def _part(part: Any, place: str) -> str:
    """The text of a content part, in the form that llama.cpp's server takes."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _wrong(f"{place} must be of type text, not {_shown(kind)}")
    return _text(part.get("text"), f"{place}.text")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(f"{place} must be text, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return shortened(json.dumps(value, default=str))


def _hint(near: str | None) -> str:
    if near:
        return f"Write {_shown(near)}."
    names = ", ".join(_NOT_SETTINGS)
    return f"Besides settings, a line may have {names}; put your own keys in metadata."


def _wrong(problem: str) -> UsageError:
    return UsageError(problem, "Correct this line of the input.")
