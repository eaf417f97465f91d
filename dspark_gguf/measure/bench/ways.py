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
    """The names that are compared by default."""
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
        yours = yours.model_copy(update={"learn": False})
        ways.append(Way(YOURS, "the options that you gave", yours))
    elif YOURS in names:
        raise UsageError(f"the way {YOURS!r} has no options of speculation", "Give some.")
    return ways


def _way(name: str, cast: Cast) -> Way:
    needs = {"block": cast.draft == "block", "model": cast.draft, "cascade": cast.draft}
    if not needs.get(name, True):
        kind = "block draft" if name == "block" else "draft model"
        raise UsageError(f"the way {name!r} needs a {kind}", "Name one with -d.")
    if found := _FIXED.fullmatch(name):
        length = int(found[1])
        what = f"{'draft' if cast.draft else 'copied token'}{'s' * (length > 1)}"
        about = f"always {length} {what}"
        if name == STATIC:
            about += ", no threshold: llama.cpp's default"
        return _static(name, about, length, 0.0)
    if found := _THRESHOLD.fullmatch(name):
        length, least = int(found[1]), float(found[2])
        about = f"up to {length} drafts, each at least {least:.0%} probable"
        return _static(name, about, length, least)
    both = "the draft model and prompt lookup" if cast.draft else "prompt lookup"
    known = {
        PLAIN: ("one token a pass, no draft", {"mode": "off"}),
        "cascade": (f"{both}, as many as pay here", {}),
        OPTIMAL: (f"what you get without options: {both}, as many as pay here", {}),
    } | {
        drafter: (f"{drafter_class(drafter).about}, as many as pay here", {"drafter": drafter})
        for drafter in known_drafters()
    }
    if name not in known:
        names = f"{_NAMES}, {', '.join(known_drafters())}"
        raise UsageError(f"unknown way of decoding {name!r}", f"--ways takes {names}.")
    about, values = known[name]
    return Way(name, about, Speculation.model_validate({**values, "learn": False}))


def _static(name: str, about: str, length: int, least: float) -> Way:
    if not 1 <= length <= MAX_DRAFT:
        raise UsageError(f"unknown way {name!r}", f"A draft has 1 to {MAX_DRAFT} tokens.")
    speculation = Speculation(mode="on", draft_max=length, draft_min_prob=least, learn=False)
    return Way(name, about, speculation)
