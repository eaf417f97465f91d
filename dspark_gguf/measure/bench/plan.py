"""What a bench measures: prompts, temperatures and ways, with defaults that end in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.prompts import Prompt, read_prompts
from dspark_gguf.paths import shipped

_TEMPERATURES = (0.0, 0.7)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        prompts: what to answer.
        temperatures: at which.
        tokens: most of an answer.
        yours: the user's own settings of speculation, where they are not the default.
        quick: fewer ways.
        repeats: turns of each prompt.
        ways: names; empty: the usual ones.
        peer: measure other programs, too.
        report: folder for the page, or None.
        as_json: print the JSON object alone.

    """

    prompts: list[Prompt]
    temperatures: tuple[float, ...]
    tokens: int
    yours: Speculation | None
    quick: bool
    repeats: int = 1
    ways: tuple[str, ...] = ()
    peer: bool = False
    report: Path | None = None
    as_json: bool = False


def make_plan(
    settings: Settings,
    *,
    prompts: Path | None = None,
    domains: Sequence[str] = (),
    per_domain: int | None = None,
    tokens: int | None = None,
    quick: bool = False,
    **rest: Any,
) -> Plan:
    """What the user asked for, with defaults for the rest.

    Args:
        settings: the user's own.
        prompts: see `choose_prompts`.
        domains: the same.
        per_domain: the same; None: just enough for a first figure.
        tokens: most of an answer.
        quick: half a minute.
        rest: the other attributes of a plan.

    Raises:
        UsageError: see `choose_prompts`.

    """
    yours = settings.speculation.model_copy(update={"learn": True})
    each = (1 if quick else 2) if per_domain is None else per_domain
    return Plan(
        choose_prompts(prompts, domains, each),
        temperatures_of(settings, quick),
        tokens or (32 if quick else 48),
        None if yours == Speculation() else yours,
        quick,
        **rest,
    )


def choose_prompts(path: Path | None, domains: Sequence[str], each: int) -> list[Prompt]:
    """The prompts to answer; the kinds of text take turns.

    Args:
        path: a file; None: both built-in ones.
        domains: kinds of text; empty: all.
        each: most prompts of each; 0: all.

    Raises:
        UsageError: a kind of text that is not there.

    """
    folder = shipped("configs") / "prompts"
    paths = [path] if path else [folder / "default.jsonl", folder / "copying.jsonl"]
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in (prompt for one in paths for prompt in read_prompts(one)):
        same = by_domain.setdefault(prompt.domain, [])
        if prompt not in same:
            same.append(prompt)
    if not by_domain:
        raise UsageError(f"{path} has no prompts", "Write one.")
    for domain in domains:
        if domain not in by_domain:
            raise UsageError(f"unknown domain {domain!r}", f"Choose from {', '.join(by_domain)}.")
    rows = [by_domain[domain][: each or None] for domain in domains or by_domain]
    longest = max(map(len, rows))
    return [row[k] for k in range(longest) for row in rows if k < len(row)]


def temperatures_of(settings: Settings, quick: bool) -> tuple[float, ...]:
    """The user's own, where it is given; else greedy and, unless it is to be quick, warm."""
    if "temperature" in settings.sampling.model_fields_set:
        return (settings.sampling.temperature,)
    return _TEMPERATURES[:1] if quick else _TEMPERATURES
