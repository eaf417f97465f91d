"""Stopping rules by name, for replays: ``optimal``, ``threshold:p=0.5,max=8``, ``fixed:max=3``."""

from __future__ import annotations

from collections.abc import Iterator

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import MAX_DRAFT, Speculation
from dspark_gguf.cost import FixedCosts
from dspark_gguf.errors import UsageError
from dspark_gguf.schedule import Source, StoppingRule, make_stopping_rule

#: The static settings that people try by hand.
FIXED = range(1, 13)
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9)
LENGTHS = (3, 4, 6, 8, 12)

#: Options by rule, with their defaults; ``max`` is the most tokens of a draft.
_OPTIONS: dict[str, dict[str, float]] = {
    "fixed": {"max": 3},
    "threshold": {"p": 0.6, "max": 12},
    "prefix": {"max": MAX_DRAFT},
    "optimal": {"max": MAX_DRAFT},
    "lookup": {"max": MAX_DRAFT},
    "cascade": {"max": MAX_DRAFT, "looks": 12},
}
_SPELLINGS = {
    "k": "max", "n": "max", "length": "max", "limit": "max", "draft_max": "max", "n_max": "max",
    "min_prob": "p", "p_min": "p", "draft_min_prob": "p", "threshold": "p",
}  # fmt: skip


def static_rules() -> Iterator[str]:
    """Names of the 37 static settings of the grid."""
    for length in FIXED:
        yield f"fixed:max={length}"
    for p in THRESHOLDS:
        for length in LENGTHS:
            yield f"threshold:p={p},max={length}"


def make_rule(name: str, costs: FixedCosts) -> StoppingRule:
    """The rule of that name, with nothing learned.

    Args:
        name: ``NAME[:option=value,...]``.
        costs: what it reckons with.

    Raises:
        UsageError: no such rule or option, or a value out of range.

    """
    kind, options = _parsed(name)
    limit, copies = int(options["max"]), None
    if kind in ("lookup", "cascade"):
        copies = Source("lookup", limit, Calibration.of_copies(), is_free=True)
        kind, limit = "optimal", int(options.get("looks", 0))
    if kind in ("prefix", "optimal"):
        limit = min(limit, costs.limit)
    speculation = Speculation.model_validate({"rule": kind, "draft_min_prob": options.get("p")})
    return make_stopping_rule(speculation, costs, Source("model", limit), copies)


def _parsed(name: str) -> tuple[str, dict[str, float]]:
    kind, _, rest = name.partition(":")
    if kind not in _OPTIONS:
        raise UsageError(f"a rule ({', '.join(_OPTIONS)})", repr(kind), "correct --rule")
    options = dict(_OPTIONS[kind])
    for word in filter(None, rest.split(",")):
        given, _, value = word.partition("=")
        key = _SPELLINGS.get(given.strip(), given.strip())
        wanted = " or ".join(f"{option}=NUMBER" for option in options)
        if key not in options:
            raise UsageError(f"{wanted} for {kind}", repr(word), "correct --rule")
        options[key] = _number(key, value, wanted)
    return kind, options


def _number(key: str, text: str, wanted: str) -> float:
    try:
        value = float(text) if key == "p" else int(text)
    except ValueError:
        raise UsageError(wanted, repr(text), "correct --rule") from None
    most = 1 if key == "p" else MAX_DRAFT
    if not 0 <= value <= most:
        raise UsageError(f"{key} of 0 to {most}", text, "correct --rule")
    return value
