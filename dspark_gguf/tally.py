"""Sums over rounds: the counts and times of an answer or a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from dspark_gguf.records import FinishReason, Round


@dataclass(slots=True)
class Tally:
    """Counts and seconds, summed over rounds."""

    rounds: int = 0
    plain_rounds: int = 0
    tokens: int = 0
    first_tokens: int = 0  # of these, first tokens, from prefills
    drafted: int = 0
    accepted: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0

    def add(self, round: Round) -> None:
        """Count one round."""
        if not self.tokens and round.tokens:
            self.first_token_seconds = self.seconds + round.seconds
        self.seconds += round.seconds
        self.draft_seconds += round.draft_seconds
        self.target_seconds += round.target_seconds
        self.prefill_seconds += round.prefill_seconds
        if not round.tokens:
            return
        self.rounds += 1
        self.plain_rounds += round.drafted == 0
        self.tokens += len(round.tokens)
        self.first_tokens += len(round.tokens) if round.prefill_seconds else 0
        self.drafted += round.drafted
        self.accepted += round.accepted
        _add_each(self.drafted_by_position, [1] * round.drafted)
        _add_each(self.accepted_by_position, [1] * round.accepted)

    def merge(self, other: Tally) -> None:
        """Add the sums of `other`; the time to the first token, which is not a sum, is kept."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, list):
                _add_each(mine, theirs)
            elif name != "first_token_seconds":
                setattr(self, name, mine + theirs)

    @property
    def controller_seconds(self) -> float:
        """Everything outside the models: sampling, verification, detokenizing, Python."""
        models = self.prefill_seconds + self.target_seconds + self.draft_seconds
        return max(0.0, self.seconds - models)

    @property
    def decode_seconds(self) -> float:
        """Seconds of everything after the first token."""
        return self.seconds - self.prefill_seconds

    @property
    def tokens_per_round(self) -> float:
        """Tokens per pass of the target; 1 with plain decoding."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token, which comes from the prefill."""
        tokens, seconds = self.tokens - self.first_tokens, self.decode_seconds
        return tokens / seconds if seconds > 0 else 0.0

    @property
    def accepted_share(self) -> float:
        """Accepted over verified draft tokens."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def shares_by_position(self, least: int = 1) -> list[float]:
        """Acceptance rate by position in the draft, for positions with at least `least` tokens."""
        pairs = zip_longest(self.accepted_by_position, self.drafted_by_position, fillvalue=0)
        return [yes / drafted for yes, drafted in pairs if drafted >= least]

    def as_dict(self) -> dict[str, Any]:
        """The ``stats`` of a JSON answer; times in seconds."""
        return {
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "accepted_by_position": list(self.accepted_by_position),
            "drafted_by_position": list(self.drafted_by_position),
            "tokens_per_round": round(self.tokens_per_round, 3),
            "tokens_per_second": round(self.tokens_per_second, 3),
            "first_token_seconds": round(self.first_token_seconds, 6),
            "seconds": {"total": round(self.seconds, 6)}
            | {
                name: round(getattr(self, f"{name}_seconds"), 6)
                for name in ("prefill", "target", "draft", "controller")
            },
        }


def _add_each(sums: list[int], counts: Sequence[int]) -> None:
    sums.extend([0] * (len(counts) - len(sums)))
    for k, count in enumerate(counts):
        sums[k] += count


@dataclass(slots=True)
class Answer:
    """The rounds of one answer, put together."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tally: Tally = field(default_factory=Tally)

    def add(self, round: Round) -> None:
        """Append one round."""
        self.text += round.text
        self.tokens.extend(round.tokens)
        self.finish_reason = round.finish_reason
        if not self.prompt_tokens:  # else: what is left of a shifted context, read again
            self.prompt_tokens, self.cached_tokens = round.prompt_tokens, round.cached_tokens
        self.tally.add(round)

    def as_dict(self) -> dict[str, Any]:
        """What ``run --json`` prints."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": len(self.tokens),
            },
            "stats": self.tally.as_dict(),
        }
