"""Results of a bench: medians and spreads by way and domain, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from dspark_gguf.measure.bench.turns import Sample
from dspark_gguf.measure.bench.ways import PLAIN
from dspark_gguf.tally import Tally


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

    def __format__(self, form: str) -> str:
        """The median, ± half of what lies between the extremes."""
        half = (self.high - self.low) / 2
        return f"{self.median:{form}}" + (f" ±{half:{form}}" if half else "")

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return {name: round(getattr(self, name), 4) for name in ("median", "low", "high")}


@dataclass(frozen=True, slots=True)
class Loss:
    """A kind of text on which a way is slower than plain decoding."""

    temperature: float
    domain: str
    way: str
    ratio: Figure

    @property
    def sure(self) -> bool:
        """Whether it was slower in every turn."""
        return self.ratio.high < 1.0


#: Heads of `Row.cells`.
HEADS = (
    "tok/s", "tok/round", "accepted", "off", "1st token s", "controller", "ms/round", "worst",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What a way reached at one temperature: a line for the terminal, the page and the JSON object.

    Attributes:
        ratios: speed over plain decoding by kind of text; None: not measured there.
        speed: tokens per second, over the turns.
        first_token: seconds to it, over the turns.
        tally: sums over the turns.

    """

    way: str
    temperature: float
    is_peer: bool
    ratios: dict[str, Figure | None]
    speed: Figure
    first_token: Figure
    tally: Tally

    @property
    def worst(self) -> tuple[str, Figure] | None:
        """The kind of text on which it does worst against plain decoding."""
        found = [(domain, ratio) for domain, ratio in self.ratios.items() if ratio is not None]
        return min(found, key=lambda pair: pair[1].median) if found else None

    def cells(self) -> list[str]:
        """What the tables show of it, under `HEADS`."""
        known = self._figures()
        worst = self.worst if self.way != PLAIN else None
        return [
            f"{self.speed:.1f}",
            shown(known["tokens_per_round"], ".2f"),
            shown(known["accepted_share"], ".0%"),
            shown(known["plain_rounds_share"], ".0%"),
            f"{self.first_token.median:.2f}",
            shown(known["controller_share"], ".1%"),
            shown(known["controller_ms_per_round"], ".2f"),
            f"{worst[0]} {worst[1].median:.2f}" if worst else "",
        ]

    def _figures(self) -> dict[str, float | None]:
        """Of the rounds; None where it is unknown: peers do not say which had no draft."""
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
        ratios = {name: ratio.as_dict() for name, ratio in self.ratios.items() if ratio is not None}
        return {
            "way": self.way,
            "temperature": self.temperature,
            "peer": self.is_peer,
            "ratio_by_domain": ratios,
            "tokens_per_second": self.speed.as_dict(),
            "first_token_seconds": self.first_token.as_dict(),
            **self._figures(),
            "accepted_by_position": list(tally.accepted_by_position),
            "drafted_by_position": list(tally.drafted_by_position),
            "seconds": tally.as_dict()["seconds"] if tally.target_seconds else None,
            "tokens": tally.tokens,
            "rounds": tally.rounds or None,
        }


def shown(value: Figure | float | None, form: str) -> str:
    """A cell of a table."""
    return "-" if value is None else format(value, form)


@dataclass
class Results:
    """Samples, turn by turn.

    Attributes:
        ways: names in the order of the table; plain decoding is the first.
        peers: those of other programs.

    """

    ways: list[str]
    peers: frozenset[str] = frozenset()
    samples: list[Sample] = field(default_factory=list)

    def add(self, turn: Sequence[Sample]) -> None:
        """A whole turn: a part of one could not be compared."""
        self.samples += turn

    @property
    def turns(self) -> int:
        """How many were measured."""
        return sum(sample.way == PLAIN for sample in self.samples)

    @property
    def temperatures(self) -> list[float]:
        """Those that were measured."""
        return sorted({sample.task.temperature for sample in self.samples})

    def domains_at(self, temperature: float) -> list[str]:
        """Those that were measured at this temperature: an interrupted bench can lack some."""
        samples = self.of(PLAIN, temperature)
        return list(dict.fromkeys(sample.task.domain for sample in samples))

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
        mine, plain = (
            [sample.tally.tokens_per_second for sample in self.of(one, temperature, domain)]
            for one in (way, PLAIN)
        )
        ratios = [a / b for a, b in zip(mine, plain, strict=True) if a and b]
        return Figure.of(ratios) if ratios else None

    def speed(self, way: str, temperature: float) -> Figure:
        """Tokens per second, over the turns."""
        return Figure.of(s.tally.tokens_per_second for s in self.of(way, temperature))

    def row(self, way: str, temperature: float) -> Row:
        """What a way reached."""
        samples, tally = self.of(way, temperature), Tally()
        for sample in samples:
            tally.merge(sample.tally)
        return Row(
            way,
            temperature,
            way in self.peers,
            {name: self.ratio(way, temperature, name) for name in self.domains_at(temperature)},
            self.speed(way, temperature),
            Figure.of(sample.tally.first_token_seconds for sample in samples),
            tally,
        )

    def rows(self, temperature: float) -> list[Row]:
        """What each way reached."""
        return [self.row(way, temperature) for way in self.ways]

    def losses(self, way: str) -> list[Loss]:
        """Where a way is slower than plain decoding, in the median."""
        return [
            Loss(temperature, domain, way, ratio)
            for temperature in self.temperatures
            for domain in self.domains_at(temperature)
            if (ratio := self.ratio(way, temperature, domain)) is not None and ratio.median < 1.0
        ]

    def plain_wins(self, temperature: float) -> list[str]:
        """The kinds of text on which no way of drafting is faster; peers do not count."""
        won = {
            domain
            for row in self.rows(temperature)
            if row.way != PLAIN and not row.is_peer
            for domain, ratio in row.ratios.items()
            if ratio is not None and ratio.median > 1.0
        }
        return [domain for domain in self.domains_at(temperature) if domain not in won]

    def as_dict(self) -> dict[str, Any]:
        """The part of the JSON object that holds figures; times in seconds."""
        losses = [loss for way in self.ways for loss in self.losses(way)]
        return {
            "results": [row.as_dict() for t in self.temperatures for row in self.rows(t)],
            "plain_wins": [
                {"temperature": t, "domain": domain}
                for t in self.temperatures
                for domain in self.plain_wins(t)
            ],
            "slower_than_plain": [
                asdict(loss) | {"ratio": loss.ratio.as_dict(), "in_every_turn": loss.sure}
                for loss in losses
            ],
        }
