"""Replay stopping rules on recorded chains and a cost table, exactly, without model or clock.

Rules have names: ``optimal``, ``threshold:p=0.5,max=8``, ``fixed:max=3``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspark_gguf.calibration import Calibration
from dspark_gguf.chat.progress import track
from dspark_gguf.config import MAX_DRAFT, Speculation
from dspark_gguf.cost import FixedCosts
from dspark_gguf.draft import Cascade, Drafter, LookupDrafter
from dspark_gguf.engine.protocol import run_alone
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains, Guesses, odds
from dspark_gguf.records import NO_DRAFT, Draft, Round, Segment, Verdict
from dspark_gguf.schedule import (
    LookupRule,
    Plan,
    Source,
    StoppingRule,
    Threshold,
    make_stopping_rule,
)

#: 37 static settings such as people try by hand.
STATIC = [f"fixed:max={length}" for length in range(1, 13)] + [
    f"threshold:p={p},max={length}"
    for p in (0.3, 0.5, 0.7, 0.8, 0.9)
    for length in (3, 4, 6, 8, 12)
]

#: Options by rule, with their defaults; ``max`` is the most tokens of a draft.
_OPTIONS: dict[str, dict[str, float]] = {
    "fixed": {"max": 3},
    "threshold": {"p": 0.6, "max": 12},
    "prefix": {"max": MAX_DRAFT},
    "optimal": {"max": MAX_DRAFT},
    "lookup": {"max": MAX_DRAFT},
    "cascade": {"max": MAX_DRAFT, "steps": 12},
}
#: Other names of these options: those of the command line, of llama.cpp, and former ones.
_SPELLINGS = {
    "k": "max", "n": "max", "length": "max", "limit": "max", "draft_max": "max", "n_max": "max",
    "min_prob": "p", "p_min": "p", "draft_min_prob": "p", "threshold": "p", "looks": "steps",
}  # fmt: skip

#: Stand-ins for the target's token at a place, and for any other.
RIGHT, WRONG = 1, 0


@dataclass(slots=True)
class Sums:
    """Tokens, and the seconds they took."""

    plain_second: float  # seconds of one token of plain decoding
    tokens: int = 0
    seconds: float = 0.0

    @property
    def speedup(self) -> float:
        """Over plain decoding."""
        return self.tokens * self.plain_second / self.seconds if self.seconds else 1.0


@dataclass(slots=True)
class Result(Sums):
    """The result of a rule."""

    domains: dict[str, Sums] = field(default_factory=dict)  # by kind of text
    rounds: int = 0
    drafted: int = 0  # draft steps that were paid for
    verified: int = 0  # draft tokens sent to the target
    accepted: int = 0

    def as_dict(self, rule: str) -> dict[str, Any]:
        """The object that ``replay --json`` prints."""
        counts = ("rounds", "drafted", "verified", "accepted")
        return {
            "rule": rule,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "plain_seconds": self.tokens * self.plain_second,
            "speedup": self.speedup,
            "domains": {
                name: {"tokens": sums.tokens, "seconds": sums.seconds, "speedup": sums.speedup}
                for name, sums in self.domains.items()
            },
            **{name: getattr(self, name) for name in counts},
        }


def replay(texts: Iterable[Chains], costs: FixedCosts, rule: StoppingRule) -> Result:
    """Walk through all texts in order; the rule keeps what it learns.

    A UsageError says that a rule about copies has none to decide about.
    """
    unit = float(costs.target_seconds[0])
    result = Result(unit)
    for text in texts:
        sums = result.domains.setdefault(text.domain, Sums(unit))
        drafter: Drafter = Steps(scored(text, isinstance(rule, Threshold)), costs)
        depth = text.depth
        if isinstance(rule, LookupRule):
            if text.lookup is None:
                problem = "these chains were recorded without the copies that this rule is about"
                raise UsageError(problem, "Record them anew with `dspark-gguf trace`.")
            drafter = Cascade(Lookup(text.lookup), drafter)
            depth = max(depth, text.lookup.scores.shape[1])
        limit = min(depth, costs.limit if text.depth else len(costs.target_seconds) - 1)
        position = 0
        while position < text.positions:
            # The drafters only look at how many tokens there are.
            draft = run_alone(drafter.steps(range(position), rule.plan(limit)))
            round = _verified(draft, costs)
            rule.observe(round)
            tokens = min(round.accepted + 1, text.positions - position)
            position += tokens
            for place in (result, sums):
                place.tokens += tokens
                place.seconds += round.seconds
            result.rounds += 1
            result.drafted += draft.steps
            result.verified += len(draft)
            result.accepted += min(round.accepted, tokens)
    return result


def scored(text: Chains, probability: bool) -> Guesses:
    """The draft's guesses with top probabilities as scores, or with gaps or log-odds."""
    scores = text.confidence
    if not probability and text.gap is not None:
        scores = text.gap
    elif not probability and ((scores >= 0.0) & (scores <= 1.0)).all():
        scores = odds(scores)
    return Guesses(scores, text.survived)


class Steps(Drafter):
    """Recorded draft steps.

    After a wrong token, the text's own chains stand in for what would have been guessed, since
    nothing there is accepted either way.
    """

    name = "model"

    def __init__(self, guesses: Guesses, costs: FixedCosts) -> None:
        self._guesses = guesses
        self._seconds = np.diff(costs.draft_seconds, prepend=0.0).tolist()

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """As far as the plan goes."""
        scores, right = self._guesses.at(len(tokens))
        kept = steps = 0
        while steps < min(plan.length, len(scores)):
            steps += 1
            if not plan.admits(scores[steps - 1]):
                break
            kept += 1
            if not plan.goes_on():
                break
        if not steps:
            return NO_DRAFT
        guesses, seconds = _stand_ins(kept, right), tuple(self._seconds[:steps])
        return Draft(Segment("model", guesses, (), tuple(scores[:steps]), seconds))


class Lookup(LookupDrafter):
    """Recorded copies."""

    def __init__(self, copies: Guesses) -> None:
        self._copies = copies

    def guess(
        self, tokens: Sequence[int], most: int, drafted: Sequence[int] = ()
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """What was recorded at this place."""
        scores, right = self._copies.at(len(tokens) + len(drafted))
        return _stand_ins(len(scores[:most]), right), tuple(scores[:most])

    def ends(self, drafted: Sequence[int]) -> bool:
        """Never: stand-ins end nothing."""
        return False


def _stand_ins(count: int, right: int) -> tuple[int, ...]:
    return (RIGHT,) * min(right, count) + (WRONG,) * (count - right)


def _verified(draft: Draft, costs: FixedCosts) -> Round:
    accepted = [*draft.tokens, WRONG].index(WRONG)
    drafting = sum(sum(segment.seconds) for segment in draft.segments)
    target = float(costs.target_seconds[len(draft)])
    return Round(
        (RIGHT,) * (accepted + 1),
        draft=draft,
        verdict=Verdict(accepted, RIGHT),
        seconds=drafting + target,
        draft_seconds=drafting,
        target_seconds=target,
    )


def make_rule(name: str, costs: FixedCosts) -> StoppingRule:
    """The rule ``NAME[:option=value,...]``, with nothing learned.

    A UsageError says that there is no such rule or option, or that a value is out of range.
    """
    kind, _, words = name.partition(":")
    if kind not in _OPTIONS:
        raise UsageError(f"unknown rule {kind!r}", f"--rule takes {', '.join(_OPTIONS)}.")
    options = _OPTIONS[kind] | dict(_option(kind, word) for word in filter(None, words.split(",")))
    limit, lookup = int(options["max"]), None
    if kind in ("lookup", "cascade"):
        lookup = Source("lookup", limit, Calibration.of_copies(), is_free=True)
        kind, limit = "optimal", int(options.get("steps", 0))
    if kind in ("prefix", "optimal"):
        limit = min(limit, costs.limit)
    speculation = Speculation.model_validate({"rule": kind, "draft_min_prob": options.get("p")})
    return make_stopping_rule(speculation, costs, Source("model", limit), lookup)


def _option(kind: str, word: str) -> tuple[str, float]:
    given, _, text = word.partition("=")
    key = _SPELLINGS.get(given.strip(), given.strip())
    most = {name: 1 if name == "p" else MAX_DRAFT for name in _OPTIONS[kind]}
    with suppress(KeyError, ValueError):
        value = float(text) if key == "p" else int(text)
        if 0 <= value <= most[key]:
            return key, value
    takes = " and ".join(f"{name}=0 to {limit}" for name, limit in most.items())
    problem = f"wrong option {word!r} of the rule {kind}"
    raise UsageError(problem, f"--rule {kind} takes {takes}.")


def play(
    name: str, texts: Sequence[Chains], costs: FixedCosts, warm: Sequence[Chains] = ()
) -> Result:
    """Replay the rule of that name (see `make_rule`), first on `warm`, which is not counted."""
    rule = make_rule(name, costs)
    replay(warm, costs, rule)
    return replay(texts, costs, rule)


@dataclass(frozen=True, slots=True)
class Grid:
    """What all static settings reached, by name."""

    results: Mapping[str, Result]

    @classmethod
    def of(cls, texts: Sequence[Chains], costs: FixedCosts) -> Grid:
        """Replay all of them, with a progress bar on a terminal."""
        names = track(STATIC, title="settings")
        return cls({name: play(name, texts, costs) for name in names})

    def best(self, domain: str | None = None) -> tuple[str, float]:
        """Name and speedup of the fastest setting, in one domain or over all."""
        speeds = {
            name: (result if domain is None else result.domains[domain]).speedup
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
