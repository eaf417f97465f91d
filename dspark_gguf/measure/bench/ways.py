"""Ways of decoding by name: what a bench compares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dspark_gguf.config import MAX_DRAFT, Speculation
from dspark_gguf.draft import drafter_class, known_drafters
from dspark_gguf.errors import UsageError

PLAIN, STATIC, OPTIMAL, YOURS = "plain", "fixed-3", "optimal", "yours"

_FIXED = re.compile(r"fixed-(\d+)")
_THRESHOLD = re.compile(r"(\d+)-at-(0?\.\d+|1(?:\.0*)?)")
_NAMES = "plain, fixed-K, K-at-P (such as 8-at-0.5), cascade, optimal"


@dataclass(frozen=True, slots=True)
class Way:
    """A way of decoding.

    Attributes:
        name: as given.
        about: what it does, for the header.
        speculation: the settings that make it.

    """

    name: str
    about: str
    speculation: Speculation


@dataclass(frozen=True, slots=True)
class Cast:
    """Who can draft for the target.

    Attributes:
        draft: what the draft model is: ``model``, ``block``, or empty without one.

    """

    draft: str


def default_ways(cast: Cast, quick: bool = False) -> list[str]:
    """The names that are compared unless told."""
    if quick:
        return [PLAIN, STATIC, OPTIMAL]
    if not cast.draft:
        return [PLAIN, STATIC, "fixed-8", OPTIMAL]
    return [PLAIN, "fixed-1", STATIC, "fixed-8", cast.draft, "lookup", OPTIMAL]


def make_ways(names: Sequence[str], cast: Cast, yours: Speculation | None = None) -> list[Way]:
    """The ways of these names, plain decoding first: all others are measured against it.

    Nothing is remembered from one run to the next: each begins where the others began.

    Args:
        names: as in `default_ways`; a name given twice counts once.
        cast: who can draft.
        yours: the user's own settings, where they are not the default: one more way.

    Raises:
        UsageError: an unknown name, or one that needs a draft that is not there.

    """
    ways = [_way(name, cast) for name in dict.fromkeys([PLAIN, *names]) if name != YOURS]
    if yours is not None:
        ways.append(
            Way(YOURS, "the options that you gave", yours.model_copy(update={"learn": False}))
        )
    elif YOURS in names:
        raise UsageError(f"options of speculation for the way {YOURS!r}", "none", "give some")
    return ways


def _way(name: str, cast: Cast) -> Way:
    wanted = {"block": cast.draft == "block", "model": cast.draft, "cascade": cast.draft}
    if not wanted.get(name, True):
        kind = "block draft" if name == "block" else "draft model"
        raise UsageError(f"a {kind} for the way {name!r}", "none", "name one with -d")
    if found := _FIXED.fullmatch(name):
        return _fixed(name, int(found[1]), cast)
    if found := _THRESHOLD.fullmatch(name):
        return _threshold(name, int(found[1]), float(found[2]))
    both = "the draft model and copies" if cast.draft else "copies from the conversation"
    known = {
        PLAIN: ("one token a pass, no draft", {"mode": "off"}),
        "cascade": (f"{both}, as many as pay here", {}),
        OPTIMAL: (f"what you get without options: {both}, as many as pay here", {}),
    }
    if name in known_drafters():
        known[name] = f"{drafter_class(name).about}, as many as pay here", {"drafter": name}
    if name not in known:
        raise UsageError(
            f"ways of decoding ({_NAMES}, {', '.join(known_drafters())})",
            repr(name),
            "correct --ways",
        )
    about, values = known[name]
    return Way(name, about, Speculation.model_validate({**values, "learn": False}))


def _fixed(name: str, length: int, cast: Cast) -> Way:
    if not 1 <= length <= MAX_DRAFT:
        raise UsageError(f"fixed-1 to fixed-{MAX_DRAFT}", repr(name), "correct --ways")
    what = f"draft{'s' * (length > 1)}" if cast.draft else f"copied token{'s' * (length > 1)}"
    about = f"always {length} {what}"
    if name == STATIC:
        about += ", no threshold: llama.cpp's default"
    speculation = Speculation(mode="on", draft_max=length, draft_min_prob=0, learn=False)
    return Way(name, about, speculation)


def _threshold(name: str, length: int, least: float) -> Way:
    if not 1 <= length <= MAX_DRAFT:
        raise UsageError(f"1 to {MAX_DRAFT} drafts", repr(name), "correct --ways")
    about = f"up to {length} drafts, each at least {least:.0%} probable"
    speculation = Speculation(mode="on", draft_max=length, draft_min_prob=least, learn=False)
    return Way(name, about, speculation)
