"""How long to draft: stopping rules, one per file, one protocol (``base.py``)."""

from __future__ import annotations

from typing import Literal

from dspark_gguf.calibration import Calibration, log_odds
from dspark_gguf.config import Speculation
from dspark_gguf.cost import Costs, LearnedCosts
from dspark_gguf.schedule.base import Bounded as Bounded
from dspark_gguf.schedule.base import Fixed as Fixed
from dspark_gguf.schedule.base import Plan as Plan
from dspark_gguf.schedule.base import Source as Source
from dspark_gguf.schedule.base import StoppingRule as StoppingRule
from dspark_gguf.schedule.base import Threshold as Threshold
from dspark_gguf.schedule.copying import Copying as Copying
from dspark_gguf.schedule.learning import Prefix as Prefix
from dspark_gguf.schedule.learning import solved
from dspark_gguf.schedule.optimal import Optimal as Optimal

#: Tested tokens before a calibration may decide on the acceptance, and how much faster the less
#: usual one has to be.
_SURE, _BETTER = 200, 1.01


def faster_acceptance(
    costs: Costs, rejection: Calibration, match: Calibration, limit: int
) -> Literal["rejection", "match"]:
    """The faster acceptance by what scores mean under both; `rejection` until that is known."""
    if limit <= 0 or min(rejection.tested, match.tested) < _SURE:
        return "rejection"
    rates = [solved(costs, one, limit).rate for one in (rejection, match)]
    return "match" if rates[1] > _BETTER * rates[0] else "rejection"


def make_stopping_rule(
    settings: Speculation,
    costs: Costs | None = None,
    steps: Source | None = None,
    guesses: Source | None = None,
) -> StoppingRule:
    """The rule that `settings` ask for: the one place that turns its name into it.

    Args:
        settings: what the user chose.
        costs: of this machine, for the rules that learn; default: nothing is known.
        steps: the drafter that is paid step by step; default, without `guesses`: a draft model.
        guesses: the drafter whose guesses are free, or None.

    """
    if settings.mode == "off":
        return Fixed(0)
    name, costs = settings.stopping_rule, costs or LearnedCosts()
    first = steps or guesses or Source("model", settings.most_looks)
    if name == "fixed":
        return Fixed(first.limit)
    if name == "threshold":
        bound = settings.min_probability
        return Threshold(first.limit, log_odds(bound) if first.is_free and bound else bound)
    if name == "prefix":
        return Prefix(costs, first.calibration, first.limit, first.shadow, first.name)
    if guesses is None:
        steps = first
    looking = None
    if steps is not None and steps.limit:
        looking = Optimal(costs, steps.calibration, steps.limit, steps.shadow, steps.name)
    if guesses is None:
        return looking or Fixed(0)
    behind = steps is None or steps.follows_guesses
    return Copying(costs, guesses.calibration, guesses.limit, looking, behind, guesses.name)
