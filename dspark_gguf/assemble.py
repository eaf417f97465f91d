"""Assemble a decoder's parts from caches and settings: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.cost import Costs
from dspark_gguf.draft import (
    AnswerGrammar,
    Cascade,
    Choices,
    Drafter,
    Kit,
    LookupDrafter,
    NoDrafter,
    drafter_class,
)
from dspark_gguf.errors import UsageError
from dspark_gguf.learned import Learned
from dspark_gguf.schedule import Fixed, Source, StoppingRule, make_stopping_rule
from dspark_gguf.schedule.expected import is_hopeless
from dspark_gguf.verify import Rule, make_rule

if TYPE_CHECKING:
    from dspark_gguf.engine.sequence import SequenceCache
    from dspark_gguf.engine.vocabulary import Vocabulary

#: Starts the grammar of an answer.
Begin: TypeAlias = Callable[[], AnswerGrammar]
#: Makes a stopping rule: see `make_stopping_rule`.
MakeRule: TypeAlias = Callable[
    [Speculation, Costs | None, Source | None, Source | None], StoppingRule
]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a decoder, except the models."""

    drafter: Drafter  # where guesses come from
    scheduler: StoppingRule  # how many of them
    rule: Rule  # which of them are accepted


def assemble(
    target: SequenceCache,
    draft: Callable[[], SequenceCache | None],
    vocabulary: Vocabulary,
    sampling: Sampling,
    speculation: Speculation,
    learn: Callable[[], Learned],
    own: Drafter | None = None,
    schedule: MakeRule = make_stopping_rule,
) -> Parts:
    """The parts that these settings ask for.

    `draft` returns the draft model's cache, or None, and is only called if needed; `learn` returns
    the costs and calibrations, measured first if necessary. `own` is a drafter to use as it is,
    `schedule` makes the stopping rule. Raises a UsageError for settings that cannot be honoured, a
    PairError for a lookup store of another vocabulary.
    """
    if speculation.mode == "off":
        return Parts(NoDrafter(), Fixed(0), make_rule(speculation))
    learned = learn() if speculation.stopping_rule in ("prefix", "optimal") else None
    if learned is not None and is_hopeless(learned.costs, speculation):
        draft = lambda: None  # noqa: E731 - it could not gain anything
    kinds: list[Any] = [own] if own else [drafter_class(n) for n in _names(draft, speculation)]
    if speculation.lookup_store is not None and not any(kind.name == "lookup" for kind in kinds):
        problem = f"drafter {kinds[-1].name} does not read a lookup store"
        raise UsageError(problem, "Leave one of the two out.")
    steps = next((kind for kind in kinds if not kind.is_free), None)
    most = target.max_rows - 1
    kit = Kit(draft, vocabulary, sampling, speculation)
    drafters: list[Drafter] = [own] if own else [kind.of(kit) for kind in kinds]
    sources = [_source(each, speculation, sampling, learned, most) for each in drafters]
    scheduler = schedule(
        speculation,
        learned.costs if learned else None,
        next((one for one in sources if not one.is_free), None),
        next((one for one in sources if one.is_free), None),
    )
    first, last = drafters[0], drafters[-1]
    drafter = Cascade(first, last) if isinstance(first, LookupDrafter) and steps else last
    return Parts(drafter, scheduler, make_rule(speculation))


def _names(draft: Callable[[], SequenceCache | None], speculation: Speculation) -> list[str]:
    """Names of the drafters: at most one with free guesses, then one with draft steps."""
    if speculation.drafter not in ("auto", "model"):
        return [speculation.drafter]
    cache = draft()
    if cache is None:
        return ["lookup" if speculation.drafter == "auto" else "model"]
    both = speculation.drafter == "auto" and speculation.stopping_rule == "optimal"
    return ["lookup", cache.kind] if both else [cache.kind]


def _source(
    drafter: Drafter,
    speculation: Speculation,
    sampling: Sampling,
    learned: Learned | None,
    most: int,
) -> Source:
    """A drafter as the stopping rule sees it."""
    wanted = speculation.max_lookup_tokens if drafter.is_free else speculation.max_draft_steps
    kind = drafter.name, speculation.acceptance, sampling.temperature, drafter.is_free
    return Source(
        drafter.name,
        min(wanted, most, drafter.most),
        learned.calibration(*kind) if learned else Calibration(),
        drafter.is_free,
        drafter.follows_guesses,
        drafter.is_block,
    )


def answer_grammar(vocabulary: Vocabulary, sampling: Sampling) -> Begin | None:
    """A function that starts the grammar that these settings ask for, if any.

    Raises a UsageError for an invalid grammar, or a schema that cannot become one.
    """
    from dspark_gguf.engine.grammar import Grammar, grammar_text

    if (text := grammar_text(sampling)) is None:
        return None
    Grammar(vocabulary, text)  # errors are raised now, not at the first answer
    choices = new_choices(vocabulary)
    return lambda: AnswerGrammar(Grammar(vocabulary, text), choices)


def new_choices(vocabulary: Vocabulary) -> Choices:
    """A memory of what answers choose where a grammar leaves a choice."""
    return Choices(vocabulary.pieces.text, vocabulary.pieces.end_tokens)
