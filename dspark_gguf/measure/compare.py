"""A rule beside the static settings that people try by hand, on the same chains and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspark_gguf.cost import FixedCosts
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.replay import Result, replay
from dspark_gguf.measure.rules import make_rule, static_rules
from dspark_gguf.schedule import Threshold


def play(
    name: str, texts: Sequence[Chains], costs: FixedCosts, warm: Sequence[Chains] = ()
) -> Result:
    """Replay the rule of that name.

    Args:
        name: as for ``make_rule``.
        texts: recorded chains.
        costs: what rounds cost.
        warm: texts that the rule learns from before, not counted.

    Raises:
        UsageError: no such rule.

    """
    rule = make_rule(name, costs)
    probability = isinstance(rule, Threshold)
    if warm:
        replay(warm, costs, rule, probability)
    return replay(texts, costs, rule, probability)


@dataclass(frozen=True, slots=True)
class Grid:
    """What all static settings reached, by name."""

    results: Mapping[str, Result]

    @classmethod
    def of(cls, texts: Sequence[Chains], costs: FixedCosts) -> Grid:
        """Replay all of them."""
        return cls({name: play(name, texts, costs) for name in static_rules()})

    def best(self, domain: str | None = None) -> tuple[str, float]:
        """Name and speedup of the setting that is fastest, afterwards; of one domain or in all."""
        speeds = {
            name: result.speedup if domain is None else result.domain_speedup(domain)
            for name, result in self.results.items()
        }
        name = max(speeds, key=speeds.__getitem__)
        return name, speeds[name]

    def as_dict(self) -> dict[str, Any]:
        """What ``replay --grid --json`` adds."""
        domains = next(iter(self.results.values())).domains
        return {
            "grid": [result.as_dict(name) for name, result in self.results.items()],
            "best": _named(self.best()),
            "best_by_domain": {domain: _named(self.best(domain)) for domain in domains},
        }


def clairvoyant(texts: Sequence[Chains], costs: FixedCosts) -> float:
    """Speedup of a rule that knows what will survive: no rule can be faster.

    The least seconds from each position on, by backward induction over the text.
    """
    tokens, seconds = 0, 0.0
    for text in texts:
        depth = min(text.depth, costs.limit)
        looks = np.concatenate(([0.0], costs.draft_seconds[:depth]))
        price = looks + costs.target_seconds[: depth + 1]
        least = np.zeros(text.positions + 1)
        for t in range(text.positions - 1, -1, -1):
            # More than survive would only cost more.
            alive = min(int(text.survived[t].sum()), depth)
            reached = np.minimum(t + 1 + np.arange(alive + 1), text.positions)
            least[t] = (price[: alive + 1] + least[reached]).min()
        tokens, seconds = tokens + text.positions, seconds + float(least[0])
    return tokens * float(costs.target_seconds[0]) / seconds


def parted(texts: Sequence[Chains], tokens: int) -> tuple[list[Chains], list[Chains]]:
    """The first `tokens` positions of all texts together, and the rest."""
    first: list[Chains] = []
    rest: list[Chains] = []
    for text in texts:
        cut = min(tokens, text.positions)
        tokens -= cut
        if cut:
            first.append(text[:cut])
        if cut < text.positions:
            rest.append(text[cut:])
    return first, rest


def _named(best: tuple[str, float]) -> dict[str, Any]:
    return {"rule": best[0], "speedup": best[1]}
