"""Prompts by domain, for measurements: JSON lines of ``{"domain": ..., "prompt": ...}``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dspark_gguf.chat.batch import Job, read_jobs
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import shipped


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to answer, and what kind of text the answer will be."""

    domain: str
    messages: list[dict[str, str]]


def read_prompts(path: Path | None = None) -> list[Prompt]:
    """The prompts of a file, default those of ours; without a domain, ``all``.

    Raises:
        UsageError: naming the first prompt that is wrong.

    """
    path = path or shipped("configs") / "prompts/default.jsonl"
    return [_prompt(job, path) for job in read_jobs(path)]


def _prompt(job: Job, path: Path) -> Prompt:
    try:
        return Prompt(str(job.input.get("domain", "all")), job.messages)
    except UsageError as error:
        where = f"{error.needed} (prompt {job.index + 1} of {path})"
        raise UsageError(where, error.got, error.do) from None
