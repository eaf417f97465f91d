"""How long to draft: stopping rules, one per file, one protocol (``base.py``)."""

from __future__ import annotations

from dspark_gguf.calibration import log_odds
from dspark_gguf.config import Speculation
from dspark_gguf.cost import Costs
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.schedule.base import Bounded as Bounded
from dspark_gguf.schedule.base import Fixed as Fixed
from dspark_gguf.schedule.base import Plan as Plan
from dspark_gguf.schedule.base import Source as Source
from dspark_gguf.schedule.base import StoppingRule as StoppingRule
from dspark_gguf.schedule.base import Threshold as Threshold
from dspark_gguf.schedule.learning import Prefix as Prefix
from dspark_gguf.schedule.lookup import LookupRule as LookupRule
from dspark_gguf.schedule.optimal import Optimal as Optimal
from dspark_gguf.schedule.shared import SharedCosts as SharedCosts
from dspark_gguf.schedule.shared import allot as allot


def make_stopping_rule(
    settings: Speculation,
    costs: Costs | None = None,
    steps: Source | None = None,
    guesses: Source | None = None,
) -> StoppingRule:
    """The stopping rule that `settings` ask for.

    Args:
        settings: the user's choice.
        costs: costs on this machine, for rules that learn; default: unknown.
        steps: the drafter that takes draft steps; default, without `guesses`: a draft model.
        guesses: the drafter with free guesses, or None.

    """
    if settings.mode == "off":
        return Fixed(0)
    name, costs = settings.stopping_rule, costs or LearnedCosts()
    first = steps or guesses or Source("model", settings.max_draft_steps)
    if name == "fixed":
        return Fixed(first.limit)
    if name == "threshold":
        bound = settings.min_probability
        return Threshold(first.limit, log_odds(bound) if first.is_free and bound else bound)
    if name == "prefix":
        return Prefix(costs, first.calibration, first.limit, first.name)
    if guesses is None:
        steps = first
    step_rule = None
    if steps is not None and steps.limit:
        step_rule = Optimal(costs, steps.calibration, steps.limit, steps.name, steps.is_block)
    if guesses is None:
        return step_rule or Fixed(0)
    behind = steps is None or steps.follows_guesses
    return LookupRule(costs, guesses.calibration, guesses.limit, step_rule, behind, guesses.name)
