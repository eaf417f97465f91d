"""The DSpark paper's own rule: the reference."""

from __future__ import annotations

from collections.abc import Sequence

from dspark_gguf.calibration import place_of
from dspark_gguf.schedule.base import Plan
from dspark_gguf.schedule.learning import Learning


class Prefix(Learning):
    """Algorithm 1 of the DSpark paper (DeepSeek-AI 2026) for one request: the reference.

    Verify the longest prefix before the first fall of ``rate = expected / seconds``. It looks one
    token ahead, so that a step in the costs stops it.
    """

    def plan(self, limit: int, behind: int = 0) -> Plan:
        """At most `limit` tokens, ended by the first fall of the rate."""
        return _PrefixPlan(min(limit, self.limit), self, limit)


class _PrefixPlan:
    def __init__(self, length: int, rule: Prefix, room: int) -> None:
        self.length, self.room = length, room
        self._confidence = rule.calibration.confidence
        self._target, self._draft = rule.costs.target_seconds, rule.costs.draft_seconds
        self._looks, self._survival, self._expected = 0, 1.0, 1.0

    def admits(self, score: float) -> bool:
        """Whether the rate rises with this token; its look is paid for either way."""
        low, part = place_of(score)
        sure = self._confidence[low] * (1.0 - part) + self._confidence[low + 1] * part
        spent = self._draft[self._looks]
        self._looks += 1
        self._survival *= float(sure)
        before, after = self._expected, self._expected + self._survival
        self._expected = after
        with_it, without = spent + self._target[self._looks], spent + self._target[self._looks - 1]
        return bool(after / with_it > before / without)

    def goes_on(self) -> bool:
        """Until the rate falls."""
        return True

    def copies(self, scores: Sequence[float]) -> int:
        """Up to the first fall of the rate."""
        falls = (k for k, score in enumerate(scores) if not self.admits(score))
        return min(self.length, next(falls, len(scores)))
