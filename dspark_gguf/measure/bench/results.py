"""Results of a bench: medians and spreads by method and domain, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from dspark_gguf.learned import Comparison
from dspark_gguf.measure.bench.plan import DEFAULT, PLAIN, YOURS
from dspark_gguf.measure.bench.turns import Sample
from dspark_gguf.speedup import Speedup, exceeds, is_one_sided, measured
from dspark_gguf.tally import Tally

#: A ratio this close to 1 counts as 1.
_LITTLE = 0.02


@dataclass(frozen=True, slots=True)
class Figure:
    """A median with its range."""

    median: float
    low: float
    high: float
    turns: int = 1

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Of one value or more."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1], len(found))

    def __format__(self, form: str) -> str:
        """The median ± half of the range."""
        half = (self.high - self.low) / 2
        return f"{self.median:{form}}" + (f" ±{half:{form}}" if half else "")

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def differs(self, spread: float) -> bool:
        """Whether a ratio differs from 1, given plain decoding's own `spread`."""
        told = not exceeds(spread, self.median) or is_one_sided(self.low, self.high, self.turns)
        return told and abs(self.median - 1.0) >= _LITTLE


def shown(value: Figure | float | None, form: str) -> str:
    """A cell of a table."""
    return "-" if value is None else format(value, form)


@dataclass(frozen=True, slots=True)
class Row:
    """The results of a method at one temperature: a row on the terminal, the page and in JSON."""

    method: str
    is_peer: bool
    ratios: dict[str, Figure]  # speed over plain decoding by kind of text, where it was measured
    speed: Figure  # tokens per second, over the turns
    first_token: Figure  # seconds to it, over the turns
    tally: Tally  # sums over the turns
    comparisons: Sequence[Comparison]  # seconds of each turn, and plain decoding's
    speeds: Sequence[float]  # tokens per second of each turn

    @property
    def losses(self) -> dict[str, Figure]:
        """The ratios that are slower than plain decoding, in the median."""
        return {domain: ratio for domain, ratio in self.ratios.items() if ratio.median < 1.0}

    def cells(self) -> dict[str, str]:
        """Its cells in the tables, by column head."""
        known = self._figures()
        worst = min(self.ratios.items(), key=lambda pair: pair[1].median, default=None)
        return {
            "tok/s": f"{self.speed:.1f}",
            "tok/round": shown(known["tokens_per_round"], ".2f"),
            "accepted": shown(known["accepted_share"], ".0%"),
            "off": shown(known["plain_rounds_share"], ".0%"),
            "1st token s": f"{self.first_token.median:.2f}",
            "controller": shown(known["controller_share"], ".1%"),
            "ms/round": shown(known["controller_ms_per_round"], ".2f"),
            "worst": f"{worst[0]} {worst[1].median:.2f}" if worst and self.method != PLAIN else "",
        }

    def _figures(self) -> dict[str, float | None]:
        """Figures about rounds; None if unknown: peers do not say which rounds had no draft."""
        tally, rounds = self.tally, max(self.tally.rounds, 1)
        spent, wall = tally.controller_seconds, tally.decode_seconds
        found = {
            "tokens_per_round": (tally.tokens_per_round, tally.rounds),
            "accepted_share": (tally.accepted_share, tally.drafted),
            "plain_rounds_share": (tally.plain_rounds / rounds, tally.rounds and not self.is_peer),
            "controller_share": (spent / wall if wall else 0.0, tally.target_seconds),
            "controller_ms_per_round": (1e3 * spent / rounds, tally.target_seconds),
        }
        return {name: round(value, 4) if base else None for name, (value, base) in found.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        tally = self.tally
        return {
            "peer": self.is_peer,
            "ratio_by_domain": {domain: ratio.as_dict() for domain, ratio in self.ratios.items()},
            "tokens_per_second": self.speed.as_dict(),
            "first_token_seconds": self.first_token.as_dict(),
            **self._figures(),
            "accepted_by_position": list(tally.accepted_by_position),
            "drafted_by_position": list(tally.drafted_by_position),
            "seconds": tally.as_dict()["seconds"] if tally.target_seconds else None,
            "tokens": tally.tokens,
            "rounds": tally.rounds or None,
        }


@dataclass(frozen=True, slots=True)
class Regime:
    """All results at one temperature."""

    temperature: float
    domains: list[str]  # an interrupted bench can lack some
    rows: dict[str, Row]  # by method, in the order of the table; plain decoding is the first

    def __str__(self) -> str:
        return "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"

    @property
    def drafting(self) -> list[Row]:
        """The methods of this package that draft."""
        return [row for row in self.rows.values() if row.method != PLAIN and not row.is_peer]

    @property
    def spread(self) -> float:
        """By what factor plain decoding's own speed varied, without the extreme tenths."""
        speeds = self.rows[PLAIN].speeds
        some = speeds if len(speeds) > 1 else [*speeds, *speeds]
        low, *_, high = quantiles(some, n=10, method="inclusive")
        return high / low if low else 1.0

    @property
    def drawn(self) -> Row:
        """What a user gets: the method with the given options, else the default."""
        rows = self.rows
        return next((rows[name] for name in (YOURS, DEFAULT) if name in rows), [*rows.values()][-1])

    @property
    def speedup(self) -> Speedup | None:
        """The speedup of the row that is drawn; None if nothing can be compared."""
        found = self.drawn.comparisons
        return measured(found, self.spread) if found else None

    @property
    def plain_wins(self) -> list[str]:
        """The kinds of text on which no method of drafting is faster; peers do not count."""
        won = {
            domain
            for row in self.drafting
            for domain, ratio in row.ratios.items()
            if ratio.median > 1.0
        }
        return [domain for domain in self.domains if domain not in won]


@dataclass
class Results:
    """Samples, turn by turn."""

    methods: list[str]  # in the order of the table; plain decoding is the first
    peers: frozenset[str] = frozenset()  # those of other programs
    samples: list[Sample] = field(default_factory=list)  # of whole turns: parts do not compare

    @property
    def turns(self) -> int:
        """How many were measured."""
        return sum(sample.method == PLAIN for sample in self.samples)

    def regimes(self) -> list[Regime]:
        """Of each temperature that was measured."""
        return [self.at(t) for t in sorted({sample.task.temperature for sample in self.samples})]

    def at(self, temperature: float) -> Regime:
        """Of one of them."""
        samples: dict[str, list[Sample]] = {method: [] for method in self.methods}
        for sample in self.samples:
            if sample.task.temperature == temperature:
                samples[sample.method].append(sample)
        domains = list(dict.fromkeys(sample.task.domain for sample in samples[PLAIN]))
        rows = {method: self._row(mine, samples[PLAIN]) for method, mine in samples.items()}
        return Regime(temperature, domains, rows)

    def _row(self, samples: list[Sample], plain: list[Sample]) -> Row:
        method, tally = samples[0].method, Tally()
        ratios: dict[str, list[float]] = {}  # within each turn
        comparisons: list[Comparison] = []
        for mine, base in zip(samples, plain, strict=True):
            tally.merge(mine.tally)
            speed, unit = mine.tally.tokens_per_second, base.tally.tokens_per_second
            if speed and unit:
                ratios.setdefault(mine.task.domain, []).append(speed / unit)
                seconds = mine.tally.decode_seconds
                comparisons.append((seconds, seconds * speed / unit))
        return Row(
            method,
            method in self.peers,
            {domain: Figure.of(values) for domain, values in ratios.items()},
            Figure.of(sample.tally.tokens_per_second for sample in samples),
            Figure.of(sample.tally.first_token_seconds for sample in samples),
            tally,
            comparisons,
            [sample.tally.tokens_per_second for sample in samples],
        )

    def as_dict(self) -> dict[str, Any]:
        """The part of the JSON object that holds figures; times in seconds."""
        regimes = self.regimes()
        return {
            "results": [
                {"method": row.method, "temperature": regime.temperature} | row.as_dict()
                for regime in regimes
                for row in regime.rows.values()
            ],
            "speedup": [
                {
                    "temperature": regime.temperature,
                    "method": regime.drawn.method,
                    "plain_spread": round(regime.spread, 3),
                    **found.as_dict(),
                }
                for regime in regimes
                if (found := regime.speedup)
            ],
            "plain_wins": [
                {"temperature": regime.temperature, "domain": domain}
                for regime in regimes
                for domain in regime.plain_wins
            ],
            "slower_than_plain": [
                {
                    "temperature": regime.temperature,
                    "domain": domain,
                    "method": method,
                    "ratio": ratio.as_dict(),
                    "in_every_turn": ratio.high < 1.0,
                }
                for method in self.methods
                for regime in regimes
                for domain, ratio in regime.rows[method].losses.items()
            ],
        }
