"""Many prompts from a file of JSON lines, answered in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_gguf.chat.piped import read_file
from dspark_gguf.errors import UsageError

Record = dict[str, Any]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the input.

    Attributes:
        index: its number, from 0; empty lines do not count.
        input: the line's own object, repeated in the result.

    """

    index: int
    input: Record

    @property
    def messages(self) -> list[Record]:
        """The conversation to answer.

        Raises:
            UsageError: the object is no prompt; says why.

        """
        given = [name for name in ("prompt", "messages") if name in self.input]
        if len(given) != 1:
            raise _wrong('one of "prompt" and "messages"', " and ".join(given) or "neither")
        if given == ["prompt"]:
            prompt = _text(self.input["prompt"], "prompt")
            if not prompt.strip():
                raise _wrong("text in prompt", _shown(prompt))
            return [{"role": "user", "content": prompt}]
        messages = self.input["messages"]
        if not isinstance(messages, list) or not messages:
            raise _wrong("messages in a list", _shown(messages))
        out = [_message(message, f"messages[{k}]") for k, message in enumerate(messages)]
        if out[-1]["role"] != "user":
            raise _wrong("a last message of the user", f"one of the {out[-1]['role']}")
        return out


def read_jobs(path: Path) -> list[Job]:
    """All lines of the input (``-``: stdin).

    A line that is an object but no prompt fails as a job of its own, so that the others go on.

    Raises:
        UsageError: naming the first line that is no JSON object: this is another kind of file.

    """
    jobs: list[Job] = []
    for number, line in enumerate(read_file(path).split("\n"), 1):
        if not line.strip():
            continue
        record = parsed(line)
        if record is None:
            raise UsageError(
                '{"prompt": ...} or {"messages": [...]} ' + f"in line {number} of {path}",
                line[:60],
                "correct the line",
            )
        jobs.append(Job(len(jobs), record))
    return jobs


def run_jobs(
    jobs: Iterable[Job], answer: Callable[[Job], Record], write: Callable[[Record], object]
) -> Iterator[Record]:
    """Answer the jobs in order; each result is written whole before the next begins."""
    for job in jobs:
        result = {"index": job.index, "input": job.input, **answer(job)}
        write(result)
        yield result


def parsed(line: str | bytes) -> Record | None:
    """The JSON object in a line; None if that is something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(message: Any, place: str) -> Record:
    if not isinstance(message, dict):
        raise _wrong(f"an object for {place}", _shown(message))
    if message.get("role") not in _ROLES:
        wanted = f"a role of {', '.join(_ROLES)} in {place}"
        raise _wrong(wanted, _shown(message.get("role")))
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{place}.content[{k}]") for k, part in enumerate(content))
    return {**message, "content": _text(content, f"{place}.content")}


def _part(part: Any, place: str) -> str:
    """The text of a content part, as llama.cpp's server takes them."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise _wrong(f"parts of type text, as in {place}", f"type {_shown(kind)}")
    return _text(part.get("text"), f"{place}.text")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(f"text in {place}", _shown(value))
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _wrong(needed: str, got: str) -> UsageError:
    return UsageError(needed, got, "correct the record")
