"""The base class of drafters, and their registry: a name is also a setting and a bench method.

To add one, in this package or another::

    @drafter("mine")
    class MyDrafter(Drafter):
        name = "mine"

        @classmethod
        def of(cls, kit: Kit) -> "MyDrafter": ...

Another installed package lists its class in the entry points of the group
``dspark_gguf.drafters``; then `--drafter mine` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from dspark_gguf.config import MAX_DRAFT, Sampling, Speculation
from dspark_gguf.engine.protocol import Passes, run_alone
from dspark_gguf.errors import UsageError
from dspark_gguf.noise import Draws
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.schedule import Plan

if TYPE_CHECKING:
    from dspark_gguf.draft.answer_grammar import AnswerGrammar

_GROUP = "dspark_gguf.drafters"
_DRAFTERS: dict[str, Any] = {}

Class = TypeVar("Class", bound=type)


class Drafter:
    """Guesses the tokens that the target will emit: define `steps`, or `propose` without a model.

    Between rounds, its cache holds a prefix of the committed tokens without the last one. It may
    lag behind, because it reads missing tokens only when it is asked to draft.
    """

    name: str  # its segments' source, under which its scores are calibrated
    about = "a drafter of your own"  # where its guesses come from, in words
    #: Whether guesses cost nothing but their verification. Then all of them are known, with scores,
    #: before any is chosen (`Plan.take`); otherwise each is a draft step.
    is_free = False
    follows_guesses = True  # whether it can continue tokens that another drafter guessed
    is_block = False  # whether one pass makes all its guesses, as many as were asked for
    most = MAX_DRAFT  # most tokens of a draft

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """A new answer begins after `tokens`, the prompt without its last token. Run no model here.

        `draws` is the answer's randomness, `grammar` what it must match; draft tokens that do not
        match are dropped in any case.
        """

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """Draft up to ``plan.length`` tokens that may follow `tokens`; if it is 0, run no model.

        Yield the passes of a model that you need, and receive their rows, so that conversations can
        share a pass. Ask ``plan.admits`` before a token is drawn, and ``plan.goes_on`` before
        another step.
        """
        return self.propose(tokens, plan)
        yield  # makes it a generator

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """The same draft, made with passes for this conversation alone."""
        return run_alone(self.steps(tokens, plan))

    def behind(self, tokens: Sequence[int]) -> int:
        """How many committed `tokens` it would have to read before its first step."""
        return 0

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""

    def trim(self, length: int) -> None:
        """There are now `length` committed tokens without the last: forget all beyond."""


class NoDrafter(Drafter):
    """Plain decoding."""

    name, about = "none", "nothing"

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """No guesses."""
        return NO_DRAFT


@dataclass(frozen=True, slots=True)
class Kit:
    """Everything that a drafter can be made from."""

    draft: Callable[[], Any]  # gives the draft model's cache, or None; loads it at the first call
    vocabulary: Any  # the target's
    sampling: Sampling  # how a draft token is drawn
    speculation: Speculation


def drafter(name: str) -> Callable[[Class], Class]:
    """Register a class of drafters, made by its ``of(kit)``, under `name`."""

    def register(kind: Class) -> Class:
        _DRAFTERS[name] = kind
        return kind

    return register


def known_drafters() -> list[str]:
    """All names, those of other packages too."""
    return sorted({*_DRAFTERS, *(point.name for point in entry_points(group=_GROUP))})


def drafter_class(name: str) -> Any:
    """The class of that name; a UsageError if there is none."""
    if name not in _DRAFTERS:
        for point in entry_points(group=_GROUP, name=name):
            _DRAFTERS[name] = point.load()
    if name not in _DRAFTERS:
        known = ", ".join(["auto", *known_drafters()])
        raise UsageError(f"no drafter is called {name!r}", f"Choose one of: {known}.")
    return _DRAFTERS[name]
