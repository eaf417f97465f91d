"""Prompts by domain, for measurements: JSON lines of ``{"domain": ..., "prompt": ...}``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_gguf.chat.jobs import read_jobs
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import packaged


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to answer, and what kind of text the answer will be."""

    domain: str
    messages: list[dict[str, str]]


def read_prompts(path: Path | None = None) -> list[Prompt]:
    """The prompts of a file, by default the built-in ones; without a domain, ``all``.

    A UsageError names the first invalid prompt.
    """
    path = path or packaged("configs") / "prompts/default.jsonl"
    prompts = []
    for job in read_jobs(path):
        try:
            prompts.append(Prompt(_domain(job.input), job.messages))
        except UsageError as error:
            problem = f"prompt {job.index + 1} of {path}: {error.problem}"
            raise UsageError(problem, error.hint) from None
    return prompts


def _domain(record: dict[str, Any]) -> str:
    """On one line, for tables."""
    domain = record.get("domain")
    if not isinstance(domain, str | None):
        raise UsageError("its domain is no text", "Correct this line.")
    return " ".join((domain or "").split()) or "all"
