"""Drafts under a grammar: forced tokens need no model, forbidden ones are not drafted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dspark_gguf.cost import Costs
from dspark_gguf.draft.answer_grammar import AnswerGrammar, Choices, allowed_prefix
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.engine.protocol import Passes
from dspark_gguf.noise import Draws
from dspark_gguf.records import GRAMMAR, Draft, Round, Segment
from dspark_gguf.schedule import Plan, StoppingRule

if TYPE_CHECKING:
    from dspark_gguf.engine.grammar import Grammar

#: What one more row costs at most, in passes.
_MAX_SHARE = 0.99


class GrammarDrafter(Drafter):
    """Proposes tokens that the grammar all but dictates, or another drafter's tokens that fit it.

    With `costs`, dictated tokens that are not worth their rows are not proposed.
    """

    def __init__(self, other: Drafter, grammar: AnswerGrammar, costs: Costs | None) -> None:
        self.other, self.grammar, self.costs = other, grammar, costs
        self.name, self.is_free = other.name, other.is_free

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """Restart the other drafter with the grammar, whose state stays."""
        self.grammar.length = len(tokens) + 1
        self.other.restart(tokens, draws, self.grammar)

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """Dictated tokens, or drafted ones that fit and what is dictated after them."""
        head = self._dictated(self.grammar.state.fork(), tokens[-1], plan.room)
        if len(head):
            return Draft(head)
        draft = yield from self.other.steps(tokens, plan)
        ahead = self.grammar.state.fork()
        allowed, choices = allowed_prefix(ahead, draft.tokens), self.grammar.choices
        states = {0: self.grammar.state, allowed: ahead}
        segments = list(_cut(draft.segments, allowed, states))
        if allowed and (last := draft.tokens[allowed - 1]) not in choices.end_tokens:
            tail = self._dictated(ahead, last, plan.room - allowed, allowed, choices.whole.value)
            segments += [tail] if len(tail) else []
        return Draft(*segments)

    def _dictated(
        self, state: Grammar, last: int, most: int, before: int = 0, survival: float = 1.0
    ) -> Segment:
        """As many dictated tokens after `last` as pay, after a draft of `before` tokens."""
        tokens, confidence = forced_tokens(state, last, self.grammar.choices, most)
        count = len(tokens)
        if confidence and self.costs is not None:
            count = paying(confidence, self.costs.target_seconds, before, survival)
        return Segment.of_guesses(GRAMMAR, tokens[:count], (), count)

    def behind(self, tokens: Sequence[int]) -> int:
        """What the other would have to read."""
        return self.other.behind(tokens)

    def observe(self, round: Round) -> None:
        """Learn how often the other's draft is right as a whole."""
        drafted = sum(len(each) for each in round.draft.segments if each.source != GRAMMAR)
        if drafted:
            self.grammar.choices.whole.add(round.accepted >= drafted)
        self.other.observe(round)

    def trim(self, length: int) -> None:
        """The other forgets."""
        self.other.trim(length)


def within(grammar: AnswerGrammar | None, drafter: Drafter, rule: StoppingRule) -> Drafter:
    """`drafter` under a grammar, if there is one and drafts are wanted at all."""
    if grammar is None or type(drafter) is NoDrafter:
        return drafter
    return GrammarDrafter(drafter, grammar, getattr(rule, "costs", None))


def _cut(
    segments: Sequence[Segment], length: int, states: Mapping[int, Grammar]
) -> Iterator[Segment]:
    """The segments of the first `length` tokens, and what was paid for after them.

    With them go guesses that are not to be verified, for what can be learned from them; where the
    grammar's state behind so many tokens is one of `states`, only if they fit.
    """
    place, is_cut = 0, False
    for segment in segments:
        count = min(len(segment), length - place)
        place, is_cut = place + count, is_cut or count < len(segment)
        next_ones, state = segment.untried[:1], states.get(place)
        if is_cut or (state is not None and not all(map(state.allows, next_ones))):
            segment = segment.cut(count)
        if count or segment.seconds or segment.untried:
            yield segment


def forced_tokens(
    state: Grammar, last: int, choices: Choices, most: int
) -> tuple[list[int], list[float]]:
    """Tokens that `state`, which moves on, all but dictates after `last`, and each one's chance."""
    tokens: list[int] = []
    confidence: list[float] = []
    while len(tokens) < most:
        guess = choices.likely(last, state.few())
        if guess is None:
            break
        last = guess[0]
        state.accept(last)
        tokens.append(last)
        confidence.append(guess[1])
        if last in choices.end_tokens:
            break
    return tokens, confidence


def paying(
    confidence: Sequence[float],
    seconds: npt.NDArray[np.float64],
    before: int = 0,
    survival: float = 1.0,
) -> int:
    """How many of these guesses are worth their rows, from the first, against plain decoding.

    `confidence` has the chance of each when those before it were right, `seconds` are those of a
    target pass of 1, 2, ... rows; `before` tokens, of this `survival`, are drafted before them.
    """
    # So many rows never take longer than as many passes. If the table says so, its measurement was
    # disturbed, and only rounds like these mend it.
    most = _MAX_SHARE * seconds[0] * np.arange(1, len(seconds) + 1)
    rows = np.minimum(seconds, most)[before : before + len(confidence) + 1]
    gained = survival * np.cumprod(confidence[: len(rows) - 1], dtype=np.float64)
    worth = np.concatenate(([0.0], np.cumsum(gained))) - (rows - rows[0]) / seconds[0]
    return int(worth.argmax())
