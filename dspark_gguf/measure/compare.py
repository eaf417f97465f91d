"""Stopping rules by name, replayed beside static settings on the same chains and costs.

Names: ``optimal``, ``threshold:p=0.5,max=8``, ``fixed:max=3``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import MAX_DRAFT, Speculation
from dspark_gguf.cost import FixedCosts
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.replay import Result, replay
from dspark_gguf.schedule import Source, StoppingRule, Threshold, make_stopping_rule

#: The static settings that people try by hand.
FIXED = range(1, 13)
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9)
LENGTHS = (3, 4, 6, 8, 12)

#: Options by rule, with their defaults; ``max`` is the most tokens of a draft.
_OPTIONS: dict[str, dict[str, float]] = {
    "fixed": {"max": 3},
    "threshold": {"p": 0.6, "max": 12},
    "prefix": {"max": MAX_DRAFT},
    "optimal": {"max": MAX_DRAFT},
    "lookup": {"max": MAX_DRAFT},
    "cascade": {"max": MAX_DRAFT, "looks": 12},
}
_SPELLINGS = {
    "k": "max", "n": "max", "length": "max", "limit": "max", "draft_max": "max", "n_max": "max",
    "min_prob": "p", "p_min": "p", "draft_min_prob": "p", "threshold": "p",
}  # fmt: skip


def static_rules() -> list[str]:
    """Names of the 37 static settings of the grid."""
    fixed = [f"fixed:max={length}" for length in FIXED]
    return fixed + [f"threshold:p={p},max={length}" for p in THRESHOLDS for length in LENGTHS]


def make_rule(name: str, costs: FixedCosts) -> StoppingRule:
    """The rule of that name, with nothing learned.

    Args:
        name: ``NAME[:option=value,...]``.
        costs: what rounds cost.

    Raises:
        UsageError: no such rule or option, or a value out of range.

    """
    kind, _, words = name.partition(":")
    if kind not in _OPTIONS:
        raise UsageError(f"unknown rule {kind!r}", f"--rule takes {', '.join(_OPTIONS)}.")
    options = _OPTIONS[kind] | dict(_option(kind, word) for word in filter(None, words.split(",")))
    limit, copies = int(options["max"]), None
    if kind in ("lookup", "cascade"):
        copies = Source("lookup", limit, Calibration.of_copies(), is_free=True)
        kind, limit = "optimal", int(options.get("looks", 0))
    if kind in ("prefix", "optimal"):
        limit = min(limit, costs.limit)
    speculation = Speculation.model_validate({"rule": kind, "draft_min_prob": options.get("p")})
    return make_stopping_rule(speculation, costs, Source("model", limit), copies)


def _option(kind: str, word: str) -> tuple[str, float]:
    given, _, text = word.partition("=")
    key = _SPELLINGS.get(given.strip(), given.strip())
    wrong = UsageError(
        f"wrong option {word!r} of the rule {kind}",
        f"--rule {kind} takes "
        + " and ".join(f"{one}=0 to {_most(one)}" for one in _OPTIONS[kind])
        + ".",
    )
    try:
        value = float(text) if key == "p" else int(text)
    except ValueError:
        raise wrong from None
    if key not in _OPTIONS[kind] or not 0 <= value <= _most(key):
        raise wrong
    return key, value


def _most(key: str) -> int:
    return 1 if key == "p" else MAX_DRAFT


def play(
    name: str, texts: Sequence[Chains], costs: FixedCosts, warm: Sequence[Chains] = ()
) -> Result:
    """Replay the rule of that name, see ``make_rule``; first on `warm`, which does not count."""
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
        """Name and speedup of the setting that turns out fastest, in one domain or in all."""
        speeds = {
            name: result.speedup if domain is None else result.domain_speedup(domain)
            for name, result in self.results.items()
        }
        name = max(speeds, key=speeds.__getitem__)
        return name, speeds[name]

    def as_dict(self) -> dict[str, Any]:
        """What ``replay --grid --json`` adds."""
        domains = next(iter(self.results.values())).domains
        best = {
            domain: dict(zip(("rule", "speedup"), self.best(domain), strict=True))
            for domain in (None, *domains)
        }
        return {
            "grid": [result.as_dict(name) for name, result in self.results.items()],
            "best": best.pop(None),
            "best_by_domain": best,
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
