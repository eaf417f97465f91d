"""Replay several conversations in one pass on recorded chains: exact, without a model or a clock.

A queue of texts is answered `count` at a time, and the next one begins when one has ended. Rounds
are planned, drafted in lockstep and chosen as in ``batching.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dspark_gguf.attention_costs import Attention
from dspark_gguf.config import MAX_ROWS
from dspark_gguf.cost import FixedCosts, seconds_at
from dspark_gguf.draft import Cascade, Drafter
from dspark_gguf.engine.protocol import run_alone
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.replay import RIGHT, Lookup, Steps, scored
from dspark_gguf.records import Draft, Round, Verdict
from dspark_gguf.schedule import LookupRule, SharedCosts, StoppingRule, allot


@dataclass
class Throughput:
    """What passes over a full house took."""

    plain_second: float  # seconds of one token of plain batching, as many at a time
    tokens: int = 0
    seconds: float = 0.0

    @property
    def over_plain(self) -> float:
        """Over plain batching."""
        return self.tokens * self.plain_second / self.seconds


@dataclass
class _Text:
    """A text on its way."""

    chains: Chains
    drafter: Drafter
    position: int = field(default=0)

    @property
    def left(self) -> int:
        return self.chains.positions - self.position

    def draft(self, rule: StoppingRule) -> Draft:
        copies = self.chains.lookup
        most = max(self.chains.depth, 0 if copies is None else copies.scores.shape[1])
        plan = rule.plan(min(most, self.left - 1), left=self.left)
        return run_alone(self.drafter.steps(range(self.position), plan))


def replay_many(
    texts: Sequence[Chains],
    costs: FixedCosts,
    make_rule: Callable[[SharedCosts], StoppingRule],
    count: int,
) -> Throughput:
    """All texts, `count` at a time, under one rule that keeps what it learns.

    It ends where a place would stay empty: give at least three times as many texts as places.
    """
    costs = extended(costs)
    costs.attention = Attention()  # type: ignore[attr-defined]  # in the place of costs that learn
    shared = SharedCosts(cast(Any, costs))
    rule, out = make_rule(shared), Throughput(float(costs.target_seconds[count - 1]) / count)
    waiting, going = deque(texts), list[_Text]()
    while True:
        while waiting and len(going) < count:
            chains = waiting.popleft()
            going.append(_Text(chains, _drafter(chains, costs, rule)))
        if len(going) < count:
            return out
        before = sum(text.position for text in going)
        out.seconds += _round(going, shared, rule)
        out.tokens += sum(text.position for text in going) - before
        going = [text for text in going if text.left > 0]


def extended(costs: FixedCosts, rows: int = MAX_ROWS) -> FixedCosts:
    """A table of more rows, as steep beyond its end as on the whole."""
    return FixedCosts(seconds_at(costs.target_seconds, np.arange(1, rows + 1)), costs.draft_seconds)


def _drafter(chains: Chains, costs: FixedCosts, rule: StoppingRule) -> Drafter:
    steps = Steps(scored(chains, probability=False), costs)
    if isinstance(rule, LookupRule) and chains.lookup is not None:
        return Cascade(Lookup(chains.lookup), steps)
    return steps


def _round(going: Sequence[_Text], costs: SharedCosts, rule: StoppingRule) -> float:
    """Moves all texts on; returns the seconds."""
    costs.set_count(len(going))
    drafts = [text.draft(rule) for text in going]
    seconds = 0.0
    for step in range(max(draft.steps for draft in drafts)):
        seconds += costs.step_seconds(sum(draft.steps > step for draft in drafts), step)
    survivals = [rule.survival(draft) for draft in drafts]
    table = costs.whole.target_seconds
    lengths = [len(draft) for draft in drafts]
    known = [each for each in survivals if each is not None]
    if len(going) > 1 and len(known) == len(going):
        lengths = allot(known, table, rule.rate, len(table))
    seconds += float(table[len(going) + sum(lengths) - 1])
    drafts = [draft.verify(length) for draft, length in zip(drafts, lengths, strict=True)]
    costs.set_pass(drafts)
    for text, draft in zip(going, drafts, strict=True):
        rule.observe(_verified(text, draft))
    return seconds


def _verified(text: _Text, draft: Draft) -> Round:
    accepted = next((k for k, token in enumerate(draft.tokens) if token != RIGHT), len(draft))
    text.position += min(accepted + 1, text.left)
    return Round((RIGHT,) * (accepted + 1), draft=draft, verdict=Verdict(accepted, RIGHT))
