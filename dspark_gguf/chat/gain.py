"""What drafting gained: an answer compared with plain rounds at about the same time."""

from __future__ import annotations

import os
from collections import deque
from math import sqrt
from statistics import fmean, stdev
from time import monotonic

import psutil

from dspark_gguf.learned import Comparison
from dspark_gguf.records import GRAMMAR, Round

#: Plain rounds that are needed for a comparison, and how many seconds old they may be.
_ENOUGH, _LATELY = 8, 60.0
#: A load average above this, per core, means that other programs compute too.
_BUSY = 1.5
#: A comparison says nothing if it may be off by this share of the time and by all that it found.
_UNSURE = 0.1
#: Source of drafts -> its name in the status line.
_WORDS = {"lookup": "copies", GRAMMAR: "grammar"}
#: A source of a smaller share of the tokens is not named.
_WORTH_A_WORD = 0.2


class Gain:
    """The newest answer's time against plain decoding's.

    A round without a draft, less the time of drafting, is a pass of plain decoding: it costs the
    same in both, however slow the machine is at the moment. So only the rounds with a draft are
    compared, with the plain rounds of the same answer, or of the last minute.
    """

    def __init__(self) -> None:
        #: The newest answer's speed over plain decoding's; None if nothing can be said.
        self.ratio: float | None = None
        self.saved = 0.0  # seconds in all answers that could be compared; negative: lost
        self._plain: deque[tuple[float, float]] = deque(maxlen=256)  # when, seconds
        self.start()

    def start(self) -> None:
        """Begin another answer."""
        self.ratio = None
        self._here: list[float] = []
        self._tokens, self._drafted_seconds, self._idle_seconds = 0, 0.0, 0.0
        self._right: dict[str, int] = {}
        self._tried: dict[str, int] = {}

    def add(self, round: Round) -> None:
        """Count one round."""
        if not round.tokens or round.prefill_seconds:
            return
        if round.drafted:
            self._tokens += len(round.tokens)
            self._drafted_seconds += round.seconds
            self._count_sources(round)
            return
        self._idle_seconds += round.draft_seconds
        seconds = round.seconds - round.draft_seconds
        if seconds > 0.0:  # a clock can be set back
            self._here.append(seconds)
            self._plain.append((monotonic(), seconds))

    @property
    def sources(self) -> str:
        """Where the correct drafts came from; if none was correct, where any came from."""
        counts = self._right if any(self._right.values()) else self._tried
        total = sum(counts.values())
        names = [name for name, count in counts.items() if count >= _WORTH_A_WORD * total]
        return " + ".join(dict.fromkeys(_WORDS.get(name, "draft") for name in names))

    @property
    def plain(self) -> float | None:
        """Tokens per second of plain decoding right now; None if not measured."""
        rounds = self._same_time()
        return 1.0 / fmean(rounds) if rounds else None

    def finish(self, usual: float | None) -> Comparison | None:
        """The seconds of the answer that has ended, and those of plain decoding, if they are known.

        `usual` are the tokens per second of plain decoding as measured at other times. They are
        compared with if there are no plain rounds and the machine does nothing else.
        """
        rounds = self._same_time()
        together = sum(self._here)
        took = together + self._idle_seconds + self._drafted_seconds
        if not self._tokens:
            return (took, together) if together else None
        if not (rounds or (usual and not machine_is_busy())):
            return None
        one = fmean(rounds) if rounds else 1.0 / (usual or 1.0)
        plain = together + one * self._tokens
        doubt = 2 * stdev(rounds) / sqrt(len(rounds)) * self._tokens if rounds else 0.0
        if took > 0.0 and doubt <= max(abs(plain - took), _UNSURE * took):
            self.ratio = plain / took
            self.saved += plain - took
            return took, plain
        return None

    def _same_time(self) -> list[float]:
        """Seconds of plain rounds: of this answer, else of the last minute, if there are enough."""
        since = monotonic() - _LATELY
        lately = [seconds for when, seconds in self._plain if when >= since]
        return next((each for each in (self._here, lately) if len(each) >= _ENOUGH), [])

    def _count_sources(self, round: Round) -> None:
        left = round.accepted
        for segment in round.draft.segments:
            right = min(left, len(segment))
            left -= right
            self._right[segment.source] = self._right.get(segment.source, 0) + right
            self._tried[segment.source] = self._tried.get(segment.source, 0) + len(segment)


def machine_is_busy() -> bool:
    """Whether other programs keep the machine busy, by its load average."""
    return psutil.getloadavg()[0] > _BUSY * (os.cpu_count() or 1)
