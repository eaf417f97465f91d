"""How long to draft: stopping rules, one per file, one protocol (``base.py``)."""

from __future__ import annotations

from typing import Literal

from dspark_gguf.calibration import Calibration, log_odds
from dspark_gguf.config import Speculation
from dspark_gguf.cost import Costs, LearnedCosts
from dspark_gguf.schedule.base import Forecast, Plan, StoppingRule
from dspark_gguf.schedule.copying import Copying
from dspark_gguf.schedule.learning import Learning, solved
from dspark_gguf.schedule.optimal import Optimal
from dspark_gguf.schedule.prefix import Prefix
from dspark_gguf.schedule.static import Bounded, Fixed, Threshold

__all__ = [
    "Bounded",
    "Copying",
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
    *,
    shadow: Calibration | None = None,
    copies: Calibration | None = None,
    looks: int | None = None,
    looks_after: bool = True,
) -> StoppingRule:
    """The rule that `settings` ask for.

    Args:
        settings: what the user chose.
        costs: for the rules that learn: what is known of this machine; default: nothing.
        calibration: what is known of the drafter that looks; default: nothing.
        shadow: see `Learning`.
        copies: what the scores of free guesses mean; None: there are none.
        looks: most looks of the other drafter; 0: there is none; default: as `settings`.
        looks_after: see `Copying`.

    """
    if settings.mode == "off":
        return Fixed(0)
    name, most = settings.stopping_rule, settings.most_looks if looks is None else looks
    alone = looks == 0  # nobody looks: what is drafted is copied
    limit = settings.most_copies if alone else most
    if name == "fixed":
        return Fixed(limit)
    if name == "threshold":
        bound = settings.min_probability
        return Threshold(limit, log_odds(bound) if alone and bound else bound)
    costs, calibration = costs or LearnedCosts(), calibration or Calibration()
    if name == "prefix":
        return Prefix(costs, copies if alone and copies is not None else calibration, limit, shadow)
    if copies is None:
        return Optimal(costs, calibration, limit, shadow)
    looking = Optimal(costs, calibration, most, shadow) if most else None
    return Copying(costs, copies, settings.most_copies, looking, looks_after)
