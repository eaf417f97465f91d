"""What a bench measures: prompts, temperatures and methods; the defaults take minutes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dspark_gguf.config import MAX_DRAFT, Settings, Speculation
from dspark_gguf.draft import drafter_class, known_drafters
from dspark_gguf.errors import UsageError, nearest
from dspark_gguf.measure.prompts import Prompt, read_prompts
from dspark_gguf.paths import packaged

PLAIN, STATIC, DEFAULT, YOURS = "plain", "fixed-3", "default", "yours"

_STATIC = re.compile(r"fixed-(\d{1,9})|(\d{1,9})-at-(0?\.\d+|1(?:\.0*)?)")
_NAMES = "plain, fixed-K, K-at-P (such as 8-at-0.5), cascade, default"
#: Names of methods in 0.1 -> their present names.
_OLD = {"optimal": DEFAULT}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure."""

    prompts: list[Prompt]
    temperatures: tuple[float, ...]
    tokens: int  # most of an answer
    yours: Speculation | None  # the user's own settings, where they are not the default
    quick: bool  # fewer methods
    repeats: int = 1  # turns of each prompt
    methods: tuple[str, ...] = ()  # names; empty: the usual ones
    peer: bool = False  # measure other programs, too
    report: Path | None = None  # folder for the page
    as_json: bool = False  # print the JSON object alone


def make_plan(
    settings: Settings,
    *,
    prompts: Path | None = None,
    domains: Sequence[str] = (),
    per_domain: int | None = None,
    tokens: int | None = None,
    quick: bool = False,
    **rest: Any,
) -> BenchPlan:
    """What the user asked for, with defaults for the rest.

    `prompts`, `domains` and `per_domain` are for `choose_prompts`; `rest` is of the plan itself.
    """
    for name in rest.get("methods", ()):  # before the models are loaded
        if name != YOURS:
            _method(_OLD.get(name, name), "block" if name == "block" else "model")
    yours = settings.speculation
    each = (1 if quick else 2) if per_domain is None else per_domain
    temperatures = (0.0,) if quick else (0.0, 0.7)
    if "temperature" in settings.sampling.model_fields_set:
        temperatures = (settings.sampling.temperature,)
    return BenchPlan(
        choose_prompts(prompts, domains, each),
        temperatures,
        tokens or (32 if quick else 48),
        None if yours.is_default else yours,
        quick,
        **rest,
    )


def choose_prompts(path: Path | None, domains: Sequence[str], each: int) -> list[Prompt]:
    """The prompts of a file, or of both built-in files; the kinds of text take turns.

    They are of these `domains`, by default of all, and at most `each` of a domain; 0: no limit. A
    UsageError names a domain that does not exist.
    """
    folder = packaged("configs") / "prompts"
    paths = [path] if path else [folder / "default.jsonl", folder / "copying.jsonl"]
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in (prompt for one in paths for prompt in read_prompts(one)):
        same = by_domain.setdefault(prompt.domain, [])
        if prompt not in same:
            same.append(prompt)
    for domain in domains:
        if domain not in by_domain:
            raise UsageError(f"unknown domain {domain!r}", f"Choose from {', '.join(by_domain)}.")
    rows = [by_domain[domain][: each or None] for domain in dict.fromkeys(domains or by_domain)]
    return [prompt for turn in zip_longest(*rows) for prompt in turn if prompt]


#: Methods that need a draft of their own kind.
_OWN_KINDS = {"block": "a block draft", "mtp": "prediction heads", "eagle3": "an EAGLE-3 draft"}


@dataclass(frozen=True, slots=True)
class Method:
    """A method of decoding."""

    name: str  # as given
    about: str  # what it does, for the header
    speculation: Speculation  # its settings; nothing is kept between runs


def default_methods(draft_kind: str, quick: bool = False) -> list[str]:
    """The names that are compared by default."""
    if quick:
        return [PLAIN, STATIC, DEFAULT]
    if not draft_kind:
        return [PLAIN, STATIC, "fixed-8", DEFAULT]
    return [PLAIN, "fixed-1", STATIC, "fixed-8", draft_kind, "lookup", DEFAULT]


def make_methods(
    names: Sequence[str], draft_kind: str, yours: Speculation | None = None
) -> list[Method]:
    """The methods with these names, each once; plain decoding, the baseline, comes first.

    `draft_kind` is the kind of the draft, such as ``model``, or empty without one; `yours` are the
    user's own settings. A UsageError names a method that is unknown, or lacks its draft.
    """
    wanted = dict.fromkeys(_OLD.get(name, name) for name in [PLAIN, *names])
    methods = [_method(name, draft_kind) for name in wanted if name != YOURS]
    if yours is not None:
        yours = yours.model_copy(update={"learn": False})
        methods.append(Method(YOURS, "the options that you gave", yours))
    elif YOURS in names:
        raise UsageError(f"the method {YOURS!r} needs options of speculation", "Give some.")
    return methods


def _method(name: str, draft_kind: str) -> Method:
    needs = {kind: draft_kind == kind for kind in _OWN_KINDS}
    needs |= {"model": bool(draft_kind), "cascade": bool(draft_kind)}
    if not needs.get(name, True):
        kind = _OWN_KINDS.get(name, "a draft model")
        raise UsageError(f"the method {name!r} needs {kind}", "Name one with -d.")
    if found := _STATIC.fullmatch(name):
        length, least = int(found[1] or found[2]), float(found[3] or 0.0)
        if not 1 <= length <= MAX_DRAFT:
            raise UsageError(f"unknown method {name!r}", f"A draft has 1 to {MAX_DRAFT} tokens.")
        what = f"{'draft' if draft_kind else 'copied token'}{'s' * (length > 1)}"
        about = f"always {length} {what}"
        if found[3]:
            about = f"up to {length} drafts, each at least {least:.0%} probable"
        elif name == STATIC:
            about += ", no threshold: llama.cpp's default"
        speculation = Speculation(mode="on", draft_max=length, draft_min_prob=least, learn=False)
        return Method(name, about, speculation)
    both = "the draft model and prompt lookup" if draft_kind else "prompt lookup"
    known = {
        PLAIN: ("one token a pass, no draft", {"mode": "off"}),
        "cascade": (f"{both}, as many as pay here", {}),
        DEFAULT: (f"what you get without options: {both}, as many as pay here", {}),
    } | {
        drafter: (f"{drafter_class(drafter).about}, as many as pay here", {"drafter": drafter})
        for drafter in known_drafters()
    }
    if name not in known:
        names = f"{_NAMES}, {', '.join(known_drafters())}"
        near = nearest(name, [*known, STATIC, *_OLD])
        hint = f"Did you mean {_OLD.get(near, near)}? " if near else ""
        raise UsageError(f"unknown method of decoding {name!r}", f"{hint}--methods takes {names}.")
    about, values = known[name]
    return Method(name, about, Speculation.model_validate({**values, "learn": False}))
