"""How long to draft: stopping rules, one per file, one protocol (``base.py``)."""

from __future__ import annotations

from typing import Literal

from dspark_gguf.calibration import Calibration, log_odds
from dspark_gguf.config import Speculation
from dspark_gguf.cost import Costs, LearnedCosts
from dspark_gguf.schedule.base import Forecast, Plan, Source, StoppingRule
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
    "Source",
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
    steps: Source | None = None,
    guesses: Source | None = None,
) -> StoppingRule:
    """The rule that `settings` ask for.

    Args:
        settings: what the user chose.
        costs: for the rules that learn: what is known of this machine; default: nothing.
        steps: the drafter that is paid step by step; default, without `guesses`: a draft model.
        guesses: the drafter whose guesses cost nothing; None: there is none.

    """
    if settings.mode == "off":
        return Fixed(0)
    if steps is None and guesses is None:
        steps = Source("model", settings.most_looks)
    name, costs = settings.stopping_rule, costs or LearnedCosts()
    first = steps or guesses
    assert first is not None
    if name == "fixed":
        return Fixed(first.limit)
    if name == "threshold":
        bound = settings.min_probability
        return Threshold(first.limit, log_odds(bound) if first.is_free and bound else bound)
    if name == "prefix":
        return Prefix(costs, first.calibration, first.limit, first.shadow, first.name)
    looking = None
    if steps is not None and steps.limit:
        looking = Optimal(costs, steps.calibration, steps.limit, steps.shadow, steps.name)
    if guesses is None:
        return looking or Fixed(0)
    behind = steps is None or steps.follows_guesses
    return Copying(costs, guesses.calibration, guesses.limit, looking, behind, guesses.name)
