"""What drafting gained: an answer against plain rounds of the same time, on the same machine."""

from __future__ import annotations

import os
from collections import deque
from math import sqrt
from statistics import fmean, stdev
from time import monotonic

from dspark_gguf.learned import Comparison
from dspark_gguf.records import GRAMMAR, Round

#: So many rounds without a draft can be compared with, and for so many seconds.
_ENOUGH, _LATELY = 8, 60.0
#: A load of so many per core is other work than ours.
_BUSY = 1.5
#: A comparison that may be wrong by this share of the time, and by all it found, says nothing.
_UNSURE = 0.1
#: Source of drafts -> the user's word for it.
_WORDS = {"lookup": "copies", GRAMMAR: "grammar"}
#: A source with less of the tokens than this is not named.
_WORTH_A_WORD = 0.2


class Gain:
    """The newest answer's time against plain decoding's.

    A round without a draft, less the time of drafting, is a pass of plain decoding: it costs the
    same in both, however slow the machine is at the moment. So only the rounds with a draft are
    compared, with the plain rounds of the same answer, or of the last minute.

    Attributes:
        ratio: the newest answer's speed over plain decoding's; None if nothing can be said.
        saved: seconds in all answers that could be compared; negative: lost.

    """

    def __init__(self) -> None:
        self.ratio: float | None = None
        self.saved = 0.0
        self._plain: deque[tuple[float, float]] = deque(maxlen=256)  # when, seconds
        self.start()

    def start(self) -> None:
        """Another answer."""
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
        """Where the drafts came from that were right, or the others if none was."""
        counts = self._right if any(self._right.values()) else self._tried
        total = sum(counts.values())
        names = [name for name, count in counts.items() if count >= _WORTH_A_WORD * total]
        return " + ".join(dict.fromkeys(_WORDS.get(name, "draft") for name in names))

    @property
    def plain(self) -> float | None:
        """Tokens per second of plain decoding at this time; None if not measured."""
        rounds = self._same_time()
        return 1.0 / fmean(rounds) if rounds else None

    def finish(self, usual: float | None) -> Comparison | None:
        """Compare the answer, which has ended: its seconds and plain decoding's, if that is known.

        Args:
            usual: tokens per second of plain decoding as measured at other times, which is
                compared with where there are no plain rounds and the machine does nothing else.

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
    """Whether other programs compute too, as far as the system tells."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load > _BUSY * (os.cpu_count() or 1)
