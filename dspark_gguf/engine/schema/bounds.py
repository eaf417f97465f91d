"""Numbers between a minimum and a maximum, as GBNF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dspark_gguf.engine.schema.resolve import Unsatisfiable

#: Maximum digits of an integer without a maximum, and the largest bound that is accepted.
_DIGITS, _LARGEST_BOUND = 16, 10**30
#: Maximum digits after the point, and of a float: a number close to a bound must not be rounded to
#: the bound when it is read.
_FRACTION, _FLOAT = 9, 15
_ZEROS = f'("." "0"{{1,{_FRACTION}}})?'


def number_rule(schema: Mapping[str, Any], kind: str) -> str:
    """The rule of a schema of type `kind`: integer or number."""
    low, excludes_low = _bound(schema, "minimum", "exclusiveMinimum", 1)
    high, excludes_high = _bound(schema, "maximum", "exclusiveMaximum", -1)
    if low is None and high is None:
        return kind
    for value in (low, high):
        if value is not None and abs(value) > _LARGEST_BOUND:
            raise ValueError("a grammar cannot express a minimum or maximum of so many digits")
    if kind == "integer":
        least = None if low is None else math.floor(low) + 1 if excludes_low else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if excludes_high else math.floor(high)
        found = _integers(least, most)
    else:
        for value in (low, high):
            if value is not None and value.denominator != 1:
                raise ValueError(
                    "a grammar cannot express a minimum or maximum of type number that is not a "
                    f"whole number: {float(value)}"
                )
        least, most = (None if value is None else int(value) for value in (low, high))
        found = _decimals(least, most, excludes_low, excludes_high)
    if not found:
        raise Unsatisfiable("no number is between minimum and maximum")
    return f"({' | '.join(found)}) space"


def _bound(
    schema: Mapping[str, Any], inclusive: str, exclusive: str, sign: int
) -> tuple[Fraction | None, bool]:
    """The stricter of both keywords, and whether it excludes its own value.

    Args:
        schema: with both keywords, either or none (then there is no bound: None).
        inclusive: keyword whose value is allowed.
        exclusive: keyword whose value is not.
        sign: 1 for a minimum, -1 for a maximum.

    """
    given = [word for word in (inclusive, exclusive) if word in schema]
    if not given:
        return None, False
    bound, excludes = max((sign * Fraction(str(schema[word])), word == exclusive) for word in given)
    return sign * bound, excludes


def _integers(low: int | None, high: int | None) -> list[str]:
    """Alternatives for the integers from `low` to `high`; None: no bound."""
    found = []
    if low is None or low < 0:
        least, most = 1 if high is None else max(1, -high), None if low is None else -low
        if negative := _naturals(least, most):
            found.append(f'"-" ({" | ".join(negative)})')
    if high is None or high >= 0:
        found += _naturals(max(0, low or 0), high)
    return found


def _decimals(
    low: int | None, high: int | None, excludes_low: bool, excludes_high: bool
) -> list[str]:
    """Alternatives for the numbers without an exponent from `low` to `high`; None: no bound."""
    found = []
    if low is None or low < 0:
        least = 0 if high is None else max(0, -high)
        excludes_least = excludes_high and high is not None and high <= 0
        most = None if low is None else -low
        found += [f'"-" ({part})' for part in _positive(least, most, excludes_least, excludes_low)]
    if high is None or high > 0 or (high == 0 and not excludes_high):
        excludes_least = excludes_low and low is not None and low >= 0
        found += _positive(max(0, low or 0), high, excludes_least, excludes_high)
    return found


def _positive(low: int, high: int | None, excludes_low: bool, excludes_high: bool) -> list[str]:
    """The same for bounds of at least 0."""
    first = low + 1 if excludes_low else low
    digits, zeros = _FRACTION, min(5, _FLOAT - len(str(low)))
    if high is not None and excludes_high:
        digits = min(digits, _FLOAT - len(str(high)))
    whole = _naturals(first, None if high is None else high - 1)
    fraction = f' ("." [0-9]{{1,{digits}}})?' if digits > 0 else ""
    found = [f"({' | '.join(whole)}){fraction}"] if whole else []
    if excludes_low and zeros > 0 and (high is None or low < high):
        found.append(f'"{low}" "." "0"{{0,{zeros - 1}}} [1-9] [0-9]{{0,4}}')
    if high is not None and not excludes_high and high >= first:
        found.append(f'"{high}" {_ZEROS}')
    return found


def _naturals(low: int, high: int | None) -> list[str]:
    """Alternatives for the integers from `low`, at least 0, to `high`, by number of digits."""
    high = 10 ** max(_DIGITS, len(str(low))) - 1 if high is None else high
    found = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        found.append(_same_length(str(low), str(last)))
        low = last + 1
    return found


def _same_length(low: str, high: str) -> str:
    """The integers from `low` to `high`, which have the same number of digits."""
    same = next((k for k in range(len(low)) if low[k] != high[k]), len(low))
    if same:
        rest = f" {_same_length(low[same:], high[same:])}" if same < len(low) else ""
        return f'"{low[:same]}"{rest}'
    first, last, more = int(low[0]), int(high[0]), len(low) - 1
    if not more:
        return f"[{first}-{last}]"
    found = []
    if low[1:] != "0" * more:
        found.append(f'"{first}" {_same_length(low[1:], "9" * more)}')
        first += 1
    if high[1:] != "9" * more:
        found.append(f'"{last}" {_same_length("0" * more, high[1:])}')
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}] [0-9]{{{more}}}")
    return f"({' | '.join(found)})"
