"""How long to draft: stopping rules, one per file, one protocol (``base.py``)."""

from __future__ import annotations

from typing import Literal

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.cost import Costs, LearnedCosts
from dspark_gguf.schedule.base import Forecast, Plan, StoppingRule
from dspark_gguf.schedule.learning import Learning, solved
from dspark_gguf.schedule.optimal import Optimal
from dspark_gguf.schedule.prefix import Prefix
from dspark_gguf.schedule.static import Bounded, Fixed, Threshold

__all__ = [
    "Bounded",
    "Fixed",
    "Forecast",
    "Learning",
    "Optimal",
    "Plan",
    "Prefix",
    "StoppingRule",
    "Threshold",
    "faster_acceptance",
    "make_stopping_rule",
]

#: Tested tokens before a calibration may decide on the acceptance, and how much faster the less
#: usual one has to be.
_SURE, _BETTER = 200, 1.01


def faster_acceptance(
    costs: Costs, ratio: Calibration, match: Calibration, limit: int
) -> Literal["ratio", "match"]:
    """``ratio`` or ``match``, whichever is expected to be faster; ``ratio`` until that is known.

    Args:
        costs: what looks and passes take.
        ratio: what scores mean under `ratio`.
        match: the same under `match`.
        limit: most tokens to draft.

    """
    if limit <= 0 or min(ratio.tested, match.tested) < _SURE:
        return "ratio"
    rates = [solved(costs, one, limit).rate for one in (ratio, match)]
    return "match" if rates[1] > _BETTER * rates[0] else "ratio"


def make_stopping_rule(
    settings: Speculation,
    costs: Costs | None = None,
    calibration: Calibration | None = None,
    shadow: Calibration | None = None,
) -> StoppingRule:
    """The rule that `settings` ask for.

    Args:
        settings: what the user chose.
        costs: for the rules that learn: what is known of this machine; default: nothing.
        calibration: what is known of the pair; default: nothing.
        shadow: see `Learning`.

    """
    if settings.mode == "off":
        return Fixed(0)
    limit, name = settings.draft_max, settings.stopping_rule
    if name == "fixed":
        return Fixed(limit)
    if name == "threshold":
        return Threshold(limit, settings.min_probability)
    kind = Prefix if name == "prefix" else Optimal
    return kind(costs or LearnedCosts(), calibration or Calibration(), limit, shadow)
