"""Many prompts from a file of JSON lines, answered in order, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_gguf.chat.terminal import read_text
from dspark_gguf.errors import UsageError
from dspark_gguf.visible import as_json

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
    def messages(self) -> list[dict[str, str]]:
        """The conversation to answer."""
        if "messages" in self.input:
            return list(self.input["messages"])
        return [{"role": "user", "content": self.input["prompt"]}]


def read_jobs(path: Path) -> list[Job]:
    """All lines of the input, checked before anything is generated.

    Raises:
        UsageError: naming the first line that is wrong.

    """
    jobs: list[Job] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        problem, record = _parse(line)
        if problem:
            raise UsageError(
                '{"prompt": ...} or {"messages": [...]} ' + f"in line {number} of {path}",
                problem,
                "correct the line",
            )
        jobs.append(Job(len(jobs), record))
    return jobs


def finished(path: Path, jobs: list[Job]) -> int:
    """How many results `path` already holds; a half-written last line is cut off.

    Raises:
        UsageError: its results belong to other prompts.

    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    results = [_parse_any(line) for line in whole.splitlines()]
    wanted = [job.input for job in jobs[: len(results)]]
    got = [result.get("input") if isinstance(result, dict) else None for result in results]
    if got != wanted:
        raise UsageError(
            f"results of these prompts in {path}", "others", "name another --output file"
        )
    if len(whole) < len(data):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    return len(results)


def run_jobs(
    jobs: list[Job], answer: Callable[[Job], Record], write: Callable[[str], object]
) -> Iterator[Record]:
    """Answer the jobs in order; each result is written whole before the next begins."""
    for job in jobs:
        result = {"index": job.index, "input": job.input, **answer(job)}
        write(as_json(result) + "\n")
        yield result


def _parse(line: str) -> tuple[str, Record]:
    """What is wrong with a line (nothing: empty), and its object."""
    record = _parse_any(line.encode())
    if not isinstance(record, dict):
        return line[:60], {}
    if isinstance(record.get("prompt"), str) and record["prompt"].strip():
        return "", record
    messages = record.get("messages")
    good = isinstance(messages, list) and all(
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str)
        for message in messages
    )
    if not good or not messages or messages[-1]["role"] != "user":
        return line[:60], {}
    return "", record


def _parse_any(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
