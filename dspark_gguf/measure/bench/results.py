"""What a bench found: medians and spreads by way and domain, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from dspark_gguf.measure.bench.turns import Sample
from dspark_gguf.measure.bench.ways import PLAIN
from dspark_gguf.records import Tally


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, and what it lies between."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Of one value or more."""
        found = list(values)
        return cls(median(found), min(found), max(found))

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return {name: round(getattr(self, name), 4) for name in ("median", "low", "high")}


@dataclass(frozen=True, slots=True)
class Loss:
    """A kind of text on which a way is slower than plain decoding.

    Attributes:
        sure: whether it was slower in every turn.

    """

    temperature: float
    domain: str
    way: str
    ratio: Figure

    @property
    def sure(self) -> bool:
        """Whether it was slower in every turn."""
        return self.ratio.high < 1.0


@dataclass
class Results:
    """Samples, turn by turn.

    Attributes:
        ways: names in the order of the table; plain decoding is the first.
        peers: those of them that are not ours.

    """

    ways: list[str]
    peers: frozenset[str] = frozenset()
    samples: list[Sample] = field(default_factory=list)

    def add(self, turn: Sequence[Sample]) -> None:
        """A whole turn: a part of one could not be compared."""
        self.samples += turn

    @property
    def temperatures(self) -> list[float]:
        """Those that were measured."""
        return sorted({sample.task.temperature for sample in self.samples})

    def domains_at(self, temperature: float) -> list[str]:
        """Those that were measured at this temperature: an interrupted bench can lack some."""
        samples = self.of(PLAIN, temperature)
        return list(dict.fromkeys(sample.task.domain for sample in samples))

    @property
    def turns(self) -> int:
        """How many were measured."""
        return sum(sample.way == PLAIN for sample in self.samples)

    def of(self, way: str, temperature: float, domain: str | None = None) -> list[Sample]:
        """The samples of a way; without a domain, of all."""
        return [
            sample
            for sample in self.samples
            if sample.way == way
            and sample.task.temperature == temperature
            and domain in (None, sample.task.domain)
        ]

    def ratio(self, way: str, temperature: float, domain: str) -> Figure | None:
        """Speed over that of plain decoding in the same turn; None: not measured there."""
        pairs = zip(
            self.of(way, temperature, domain), self.of(PLAIN, temperature, domain), strict=True
        )
        speeds = [(mine.tally.tokens_per_second, plain.tally.tokens_per_second)
                  for mine, plain in pairs]  # fmt: skip
        ratios = [mine / plain for mine, plain in speeds if mine and plain]
        return Figure.of(ratios) if ratios else None

    def speed(self, way: str, temperature: float) -> Figure:
        """Tokens per second, over the turns."""
        return Figure.of(s.tally.tokens_per_second for s in self.of(way, temperature))

    def first_token(self, way: str, temperature: float) -> Figure:
        """Seconds to the first token, over the turns."""
        return Figure.of(s.tally.first_token_seconds for s in self.of(way, temperature))

    def tally(self, way: str, temperature: float, domain: str | None = None) -> Tally:
        """Sums over the turns."""
        total = Tally()
        for sample in self.of(way, temperature, domain):
            total.merge(sample.tally)
        return total

    def worst(self, way: str, temperature: float) -> tuple[str, Figure] | None:
        """The kind of text on which a way does worst against plain decoding."""
        found = [
            (domain, ratio)
            for domain in self.domains_at(temperature)
            if (ratio := self.ratio(way, temperature, domain)) is not None
        ]
        return min(found, key=lambda pair: pair[1].median) if found else None

    def losses(self, way: str) -> list[Loss]:
        """Where a way is slower than plain decoding, in the median."""
        return [
            Loss(temperature, domain, way, ratio)
            for temperature in self.temperatures
            for domain in self.domains_at(temperature)
            if (ratio := self.ratio(way, temperature, domain)) is not None and ratio.median < 1.0
        ]

    def plain_wins(self, temperature: float) -> list[str]:
        """The kinds of text on which no other way of ours is faster than plain decoding."""
        others = [way for way in self.ways if way != PLAIN and way not in self.peers]
        return [
            domain
            for domain in self.domains_at(temperature)
            if all(
                (ratio := self.ratio(way, temperature, domain)) is None or ratio.median <= 1.0
                for way in others
            )
        ]

    def as_dict(self) -> dict[str, Any]:
        """The part of the JSON object that holds figures; times in seconds."""
        return {
            "results": [
                self._row(way, temperature)
                for temperature in self.temperatures
                for way in self.ways
            ],
            "plain_wins": [
                {"temperature": temperature, "domain": domain}
                for temperature in self.temperatures
                for domain in self.plain_wins(temperature)
            ],
            "slower_than_plain": [
                {
                    "temperature": loss.temperature,
                    "domain": loss.domain,
                    "way": loss.way,
                    "ratio": loss.ratio.as_dict(),
                    "in_every_turn": loss.sure,
                }
                for way in self.ways
                if way != PLAIN
                for loss in self.losses(way)
            ],
        }

    def _row(self, way: str, temperature: float) -> dict[str, Any]:
        tally = self.tally(way, temperature)
        ratios = {
            domain: self.ratio(way, temperature, domain) for domain in self.domains_at(temperature)
        }
        return {
            "way": way,
            "temperature": temperature,
            "peer": way in self.peers,
            "ratio_by_domain": {
                name: ratio.as_dict() for name, ratio in ratios.items() if ratio is not None
            },
            "tokens_per_second": self.speed(way, temperature).as_dict(),
            "first_token_seconds": self.first_token(way, temperature).as_dict(),
            "tokens_per_round": _known(tally.tokens_per_round, tally.rounds),
            "accepted_share": _known(tally.accepted_share, tally.drafted),
            "plain_rounds_share": _known(
                tally.plain_rounds / max(tally.rounds, 1), tally.rounds and way not in self.peers
            ),
            "controller_share": controller_share(tally),
            "controller_ms_per_round": controller_ms(tally),
            "accepted_by_position": list(tally.accepted_by_position),
            "drafted_by_position": list(tally.drafted_by_position),
            "seconds": tally.as_dict()["seconds"] if tally.target_seconds else None,
            "tokens": tally.tokens,
            "rounds": tally.rounds or None,
        }


def controller_share(tally: Tally) -> float | None:
    """What is spent outside the models, of the time to generate; None: not known."""
    wall = tally.decode_seconds
    return _known(tally.controller_seconds / wall if wall else 0.0, tally.target_seconds)


def controller_ms(tally: Tally) -> float | None:
    """Milliseconds a round that are spent outside the models; None: not known."""
    return _known(1e3 * tally.controller_seconds / max(tally.rounds, 1), tally.target_seconds)


def _known(value: float, base: float) -> float | None:
    return round(value, 4) if base else None
