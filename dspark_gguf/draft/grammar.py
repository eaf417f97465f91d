"""What a grammar dictates is drafted without any model; what it forbids is not drafted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dspark_gguf.cost import Costs
from dspark_gguf.dist import Dist
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.records import GRAMMAR, Draft, Round, Segment
from dspark_gguf.sampling import Row
from dspark_gguf.schedule import Plan, StoppingRule

Ids = npt.NDArray[np.int32]

#: What one more row costs at most, in passes.
_MOST_OF_A_PASS = 0.99


class State(Protocol):
    """A grammar at one point of a text; see `engine.grammar.Grammar`."""

    def fork(self) -> State:
        """The same, to try tokens on."""

    def accept(self, token: int) -> None:
        """Go on after a token that fits."""

    def fits(self, token: int) -> bool:
        """Whether it may come next."""

    def few(self) -> Ids:
        """All that may come next, or none where the choice is wide."""

    def among(self, ids: Ids) -> Ids:
        """Those that may come next."""

    def best(self, row: Row, count: int) -> Ids:
        """At least the `count` most probable of those that may come next; 0: all of them."""


class Share:
    """How often something was so, of late.

    Args:
        value: what is believed before anything was seen.
        weight: of this belief, in observations.

    """

    _KEPT = 0.98  # of the weight, at each observation

    def __init__(self, value: float, weight: float) -> None:
        self.value, self._weight = value, weight

    def add(self, so: bool) -> None:
        """Once more, or once not."""
        self._weight = self._KEPT * self._weight + 1.0
        self.value += (so - self.value) / self._weight


@dataclass
class Choices:
    """Which token was taken where a grammar left few: the next time, the same is likely.

    What it says is compared with what was taken, asked or not: how sure each guess is is learned
    without trying it.

    Attributes:
        text: the bytes of each token.
        end_tokens: after which nothing is proposed.
        taken: (last token, tokens allowed) -> token.
        again: how often the same is taken again.
        longest: how often the longest spelling is taken.
        whole: how often all of another drafter's tokens are right.

    """

    text: Sequence[bytes]
    end_tokens: frozenset[int] = frozenset()
    taken: dict[tuple[int, bytes], int] = field(default_factory=dict)
    again: Share = field(default_factory=lambda: Share(0.9, 5.0))
    longest: Share = field(default_factory=lambda: Share(0.5, 2.0))
    whole: Share = field(default_factory=lambda: Share(0.5, 2.0))

    def likely(self, last: int, allowed: Ids) -> tuple[int, float] | None:
        """The token to propose after `last` and how sure it is; None without a reason for one."""
        if len(allowed) == 1:
            return int(allowed[0]), 1.0
        token, share = self._guess(last, allowed)
        return None if token is None else (token, share.value)

    def observe(self, last: int, allowed: Ids, token: int) -> None:
        """`token` came after `last`."""
        if len(allowed) > 1:
            guess, share = self._guess(last, allowed)
            if guess is not None:
                share.add(guess == token)
            self.taken[last, allowed.tobytes()] = token

    def _guess(self, last: int, allowed: Ids) -> tuple[int | None, Share]:
        known = self.taken.get((last, allowed.tobytes()))
        if known is not None:
            return known, self.again
        # Forced: each spells a beginning of the longest, as "na", "nam" and "name" do.
        longest = max(allowed.tolist(), key=lambda token: len(self.text[token]), default=None)
        if longest is None:
            return None, self.longest
        text = self.text[longest]
        whole = all(text.startswith(self.text[each]) for each in allowed)
        return (longest if whole else None), self.longest


class AnswerGrammar:
    """The grammar of one answer, at the end of its committed tokens.

    Args:
        state: the grammar at the beginning of the answer.
        choices: what was said before where it left few.

    Attributes:
        length: tokens that are committed.

    """

    length = 0

    def __init__(self, state: State, choices: Choices) -> None:
        self.state, self.choices = state, choices

    def best(self, row: Row, count: int) -> Ids:
        """At least the `count` most probable ids that may come next; 0: all of them."""
        return self.state.best(row, count)

    def follow(self, last: int, token: int) -> None:
        """`token`, which fits, is committed behind `last`."""
        self.choices.observe(last, self.state.few(), token)
        self.state.accept(token)
        self.length += 1


class GrammarDrafter(NoDrafter):
    """Proposes what the grammar all but dictates, or what fits of another drafter's tokens.

    Args:
        other: the drafter.
        grammar: of the answer.
        costs: what rows cost, to verify as many as pay; None: all.

    """

    def __init__(self, other: Drafter, grammar: AnswerGrammar, costs: Costs | None) -> None:
        self.other, self.grammar, self.costs = other, grammar, costs
        self.name, self.is_free = other.name, other.is_free

    def restart(
        self, tokens: Sequence[int], rng: np.random.Generator, grammar: AnswerGrammar | None = None
    ) -> None:
        """The other begins anew, and knows the grammar, which goes on where it is."""
        self.grammar.length = len(tokens) + 1
        self.other.restart(tokens, rng, self.grammar)

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Dictated tokens, or drafted ones that fit and what is dictated behind them."""
        head = self._dictated(self.grammar.state.fork(), tokens[-1], plan.room)
        if len(head):
            return Draft(head)
        draft, ahead = self.other.propose(tokens, plan), self.grammar.state.fork()
        fits = fitting(ahead, draft.tokens)
        segments = list(_cut(draft.segments, fits))
        if fits and draft.tokens[fits - 1] not in self.grammar.choices.end_tokens:
            survival = self.grammar.choices.whole.value
            last = draft.tokens[fits - 1]
            tail = self._dictated(ahead, last, plan.room - fits, fits, survival)
            if len(tail):
                segments.append(tail)
        return Draft(*segments)

    def _dictated(
        self, state: State, last: int, most: int, before: int = 0, survival: float = 1.0
    ) -> Segment:
        """As many dictated tokens behind `last` as pay, behind a draft of `before` tokens."""
        tokens, sure = forced(state, last, self.grammar.choices, most)
        count = len(tokens)
        if sure and self.costs is not None:
            count = paying(sure, self.costs.target_seconds, before, survival)
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


def _cut(segments: Sequence[Segment], length: int) -> Iterator[Segment]:
    """The segments of the first `length` tokens, and what was paid for behind them."""
    for segment in segments:
        count = min(len(segment), length)
        length -= count
        if count or segment.seconds:
            yield segment if count == len(segment) else segment.cut(count)


def forced(state: State, last: int, choices: Choices, most: int) -> tuple[list[int], list[float]]:
    """Tokens that `state`, which moves on, all but dictates after `last`, and how sure each is."""
    tokens: list[int] = []
    sure: list[float] = []
    while len(tokens) < most:
        guess = choices.likely(last, state.few())
        if guess is None:
            break
        last = guess[0]
        state.accept(last)
        tokens.append(last)
        sure.append(guess[1])
        if last in choices.end_tokens:
            break
    return tokens, sure


def paying(
    sure: Sequence[float], seconds: npt.NDArray[np.float64], before: int = 0, survival: float = 1.0
) -> int:
    """How many of these guesses are worth their rows, from the first, against plain decoding.

    Args:
        sure: chance of each when those before it were right.
        seconds: of a target pass of 1, 2, ... rows.
        before: tokens drafted before them.
        survival: of those.

    """
    # So many rows never take longer than as many passes. A table that says so was disturbed, and
    # only rounds like these mend it.
    most = _MOST_OF_A_PASS * seconds[0] * np.arange(1, len(seconds) + 1)
    rows = np.minimum(seconds, most)[before : before + len(sure) + 1]
    gained = survival * np.cumprod(sure[: len(rows) - 1], dtype=np.float64)
    worth = np.concatenate(([0.0], np.cumsum(gained))) - (rows - rows[0]) / seconds[0]
    return int(worth.argmax())


def fitting(state: State, tokens: Sequence[int]) -> int:
    """How many of `tokens`, from the first, fit; `state` moves on by as many."""
    for count, token in enumerate(tokens):
        if not state.fits(token):
            return count
        state.accept(token)
    return len(tokens)


class FittingGreedy:
    """For a `ModelDrafter`: its most probable token among those that fit.

    Args:
        grammar: of the answer.

    """

    _TOP = 64

    def __init__(self, grammar: AnswerGrammar) -> None:
        self._grammar = grammar
        self._ahead: State | None = None
        self._read = 0

    def history(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """A draft after `tokens` begins, of which the last ones may be drafted too."""
        fresh = tokens[self._grammar.length :]
        ahead = self._grammar.state.fork()
        self._ahead = ahead if fitting(ahead, fresh) == len(fresh) else None
        self._read = 0
        return ()

    def __call__(self, row: Row, history: Sequence[int], drafted: Sequence[int] = ()) -> Dist:
        """The one-point law of the best token after `drafted`."""
        if self._ahead is not None:
            fresh = drafted[self._read :]
            self._read = len(drafted)
            if fitting(self._ahead, fresh) < len(fresh):
                self._ahead = None
        best = int(np.argmax(row))
        if self._ahead is None or self._ahead.fits(best):
            return Dist.point(best)
        top = np.argpartition(row, -self._TOP)[-self._TOP :] if len(row) > self._TOP else None
        ids = np.arange(len(row)) if top is None else top
        left = self._ahead.among(ids[np.argsort(-row[ids])].astype(np.int32))
        return Dist.point(int(left[0]) if len(left) else best)
