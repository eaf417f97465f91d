"""Numbers within bounds, as GBNF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dspark_gguf.engine.schema.parts import Impossible

_DIGITS = 16  # most of a number without bounds
_FARTHEST = 10**30  # a bound
# So few that a number next to its bound is not rounded to it.
_FRACTION, _ZEROS = '("." [0-9]{1,9})?', '("." "0"{1,9})?'
_ABOVE_ZERO = '"." "0"{0,4} [1-9] [0-9]{0,4}'


def number_rule(schema: Mapping[str, Any], kind: str) -> str:
    """Of an integer or any number."""
    low, above = _bound(schema, "minimum", "exclusiveMinimum", 1)
    high, below = _bound(schema, "maximum", "exclusiveMaximum", -1)
    if low is None and high is None:
        return kind
    for value in (low, high):
        if value is not None and abs(value) > _FARTHEST:
            raise ValueError("a grammar cannot express a minimum or maximum of so many digits")
    if kind == "integer":
        least = None if low is None else math.floor(low) + 1 if above else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if below else math.floor(high)
        found = integers(least, most)
    else:
        for value in (low, high):
            if value is not None and value.denominator != 1:
                raise ValueError(
                    "a grammar cannot express a minimum or maximum of a decimal number, unless "
                    f"it is whole: {float(value)}"
                )
        least, most = (None if value is None else int(value) for value in (low, high))
        found = decimals(least, most, above, below)
    if not found:
        raise Impossible("minimum leaves nothing below maximum")
    return f"({' | '.join(found)}) space"


def _bound(
    schema: Mapping[str, Any], plain: str, exclusive: str, sign: int
) -> tuple[Fraction | None, bool]:
    """The narrower of both, and whether it is left out itself."""
    given = [word for word in (plain, exclusive) if word in schema]
    if not given:
        return None, False
    bound, is_out = max((sign * Fraction(str(schema[word])), word == exclusive) for word in given)
    return sign * bound, is_out


def integers(low: int | None, high: int | None) -> list[str]:
    """Alternatives for the integers from `low` to `high`; None: no bound."""
    found = []
    if low is None or low < 0:
        least, most = 1 if high is None else max(1, -high), None if low is None else -low
        found += [f'"-" ({part})' for part in [" | ".join(_naturals(least, most))] if part]
    if high is None or high >= 0:
        found += _naturals(max(0, low or 0), high)
    return found


def decimals(low: int | None, high: int | None, above: bool, below: bool) -> list[str]:
    """Alternatives for numbers without exponent from `low` to `high`.

    With `above` or `below` that bound itself is left out.
    """
    found = []
    if low is None or low < 0:
        least = 0 if high is None else max(0, -high)
        without = below and high is not None and high <= 0
        upper = None if low is None else -low
        found += [f'"-" ({part})' for part in _positive(least, upper, without, above)]
    if high is None or high > 0 or (high == 0 and not below):
        without = above and low is not None and low >= 0
        found += _positive(max(0, low or 0), high, without, below)
    return found


def _positive(low: int, high: int | None, above: bool, below: bool) -> list[str]:
    first = low + 1 if above else low
    whole = _naturals(first, None if high is None else high - 1)
    found = [f"({' | '.join(whole)}) {_FRACTION}"] if whole else []
    if above and (high is None or low < high):
        found.append(f'"{low}" {_ABOVE_ZERO}')
    if high is not None and not below and high >= first:
        found.append(f'"{high}" {_ZEROS}')
    return found


def _naturals(low: int, high: int | None) -> list[str]:
    """Alternatives from `low`, at least 0, to `high`: for each number of digits some."""
    high = 10 ** max(_DIGITS, len(str(low))) - 1 if high is None else high
    found = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        found.append(_span(str(low), str(last)))
        low = last + 1
    return found


def _span(low: str, high: str) -> str:
    """From `low` to `high`, which have as many digits."""
    same = next((k for k in range(len(low)) if low[k] != high[k]), len(low))
    if same:
        rest = f" {_span(low[same:], high[same:])}" if same < len(low) else ""
        return f'"{low[:same]}"{rest}'
    first, last, more = int(low[0]), int(high[0]), len(low) - 1
    if not more:
        return f"[{first}-{last}]"
    found = []
    if low[1:] != "0" * more:
        found.append(f'"{first}" {_span(low[1:], "9" * more)}')
        first += 1
    if high[1:] != "9" * more:
        found.append(f'"{last}" {_span("0" * more, high[1:])}')
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}] [0-9]{{{more}}}")
    return f"({' | '.join(found)})"
