"""The records that travel between the parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dspark_gguf.dist import Dist

#: Why an answer ended: the model or a stop string, the token budget, the context, the user.
FinishReason = Literal["stop", "length", "context", "cancelled"]

#: The source of what a grammar all but dictates.
GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive draft tokens of one source.

    Attributes:
        source: the drafter's name, under which its scores are calibrated.
        tokens: the ids to verify ``[k]``.
        dists: the distribution that each of them was drawn from ``[k]``.
        scores: the raw score of each guess, known before its token was drawn: of `tokens` and then
            of `untried`, or of one row more where drafting ended before that row's token.
        seconds: wall time of each draft step; empty where guesses cost nothing.
        caught_up: tokens read before the first step.
        untried: ids guessed behind `tokens` that are not to be verified.

    """

    source: str
    tokens: tuple[int, ...] = ()
    dists: tuple[Dist, ...] = ()
    scores: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    caught_up: int = 0
    untried: tuple[int, ...] = ()

    @classmethod
    def of_guesses(
        cls, source: str, guesses: Sequence[int], scores: Sequence[float], count: int
    ) -> Segment:
        """Guesses that cost nothing, of which the first `count` are to be verified."""
        tokens = tuple(guesses[:count])
        dists = tuple(map(Dist.point, tokens))
        return cls(source, tokens, dists, tuple(scores), untried=tuple(guesses[count:]))

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, count: int) -> Segment:
        """The same with nothing behind its first `count` tokens, but what it cost."""
        return replace(
            self,
            tokens=self.tokens[:count],
            dists=self.dists[:count],
            scores=self.scores[:count],
            untried=(),
        )


class Draft:
    """Proposed tokens, in order, segment by segment.

    Attributes:
        segments: what each source proposed.
        tokens: the proposed ids of all segments ``[k]``.

    """

    __slots__ = ("segments", "tokens")

    def __init__(self, *segments: Segment) -> None:
        self.segments = segments
        self.tokens: tuple[int, ...] = sum((each.tokens for each in segments), ())

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Draft) and self.segments == other.segments

    def __hash__(self) -> int:
        return hash(self.segments)

    def __repr__(self) -> str:
        return f"Draft{self.segments!r}"

    @property
    def dists(self) -> tuple[Dist, ...]:
        """The distribution that each token was drawn from ``[k]``."""
        return sum((each.dists for each in self.segments), ())

    @property
    def is_dictated(self) -> bool:
        """Whether a grammar alone proposed it: no plan was asked."""
        return bool(self.tokens) and all(each.source == GRAMMAR for each in self.segments)

    @property
    def steps(self) -> int:
        """Draft steps that were paid for."""
        return sum(len(each.seconds) for each in self.segments)

    def outcomes(self, emitted: Sequence[int]) -> Iterator[tuple[int, Segment, tuple[float, ...]]]:
        """What became of each segment's guesses.

        Args:
            emitted: the tokens of the round.

        Yields:
            Place of the segment in the draft, the segment, and 1 for each of its guesses that was
            emitted, up to the first one that was not: 0. Of nothing behind a wrong token.

        """
        place, right = 0, True
        for segment in self.segments:
            told: list[float] = []
            for guess, token in zip(
                segment.tokens + segment.untried, emitted[place:] if right else (), strict=False
            ):
                told.append(float(guess == token))
                if guess != token:
                    break
            yield place, segment, tuple(told)
            right = right and len(told) >= len(segment) and all(told[: len(segment)])
            place += len(segment)


#: A round without a draft: plain decoding.
NO_DRAFT = Draft()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target made of a draft.

    Attributes:
        accepted: how many draft tokens stand, from the first.
        token: the target's own token after them; None: the answer ends here without one.
        match_chances: for each draft token whose fate was seen, the probability that the target's
            own draw is the draft's most probable token; empty where nobody asked.

    """

    accepted: int
    token: int | None
    match_chances: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the target and what came of it.

    Attributes:
        tokens: ids emitted, in order. Empty where an answer ends without a new token.
        text: the new characters of the answer. Lags behind the tokens where a character or a
            possible stop string is not complete yet.
        draft: what was proposed.
        verdict: what the target made of it; None where there was no pass.
        reread: tokens that the target read again, because its cache had lost them with a rejected
            draft.
        seconds: wall time of the round; what the consumer does between rounds is not in it.
        draft_seconds: of these, drafting.
        target_seconds: of these, the target's pass.
        prefill_seconds: of these, the pass over what was new of the prompt, which yields the first
            token.
        prompt_tokens: tokens of the prompt; zero but in the first round of an answer.
        cached_tokens: of these, tokens the target still had in its cache.
        finish_reason: set on the last round of an answer.

    """

    tokens: tuple[int, ...]
    text: str = ""
    draft: Draft = NO_DRAFT
    verdict: Verdict | None = None
    reread: int = 0
    seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    prefill_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    @property
    def drafted(self) -> int:
        """Draft tokens that were verified."""
        return len(self.draft)

    @property
    def accepted(self) -> int:
        """How many of them the target kept and the answer had room for."""
        return min(self.verdict.accepted, len(self.tokens)) if self.verdict else 0


@dataclass(slots=True)
class Tally:
    """Sums over rounds: what llama.cpp calls statistics.

    Attributes:
        first_tokens: of all `tokens`, those that the passes over prompts yielded.

    """

    rounds: int = 0
    plain_rounds: int = 0
    tokens: int = 0
    first_tokens: int = 0
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
        for positions, count in (
            (self.drafted_by_position, round.drafted),
            (self.accepted_by_position, round.accepted),
        ):
            positions.extend([0] * (count - len(positions)))
            for k in range(count):
                positions[k] += 1

    def merge(self, other: Tally) -> None:
        """Add the sums of `other`; the time to the first token is not a sum and stays."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, list):
                mine.extend([0] * (len(theirs) - len(mine)))
                for k, count in enumerate(theirs):
                    mine[k] += count
            elif name != "first_token_seconds":
                setattr(self, name, mine + theirs)

    @property
    def controller_seconds(self) -> float:
        """Everything that is not a model at work: sampling, verification, text, Python."""
        models = self.prefill_seconds + self.target_seconds + self.draft_seconds
        return max(0.0, self.seconds - models)

    @property
    def decode_seconds(self) -> float:
        """Seconds of everything behind the first token."""
        return self.seconds - self.prefill_seconds

    @property
    def tokens_per_round(self) -> float:
        """Tokens that one pass of the target yields; plain decoding has 1."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed behind the first token, which the pass over the prompt yields."""
        tokens, seconds = self.tokens - self.first_tokens, self.decode_seconds
        return tokens / seconds if seconds > 0 else 0.0

    @property
    def accepted_share(self) -> float:
        """Accepted over verified draft tokens."""
        return self.accepted / self.drafted if self.drafted else 0.0

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
            "seconds": {
                "total": round(self.seconds, 6),
                "prefill": round(self.prefill_seconds, 6),
                "target": round(self.target_seconds, 6),
                "draft": round(self.draft_seconds, 6),
                "controller": round(self.controller_seconds, 6),
            },
        }


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
        if not self.prompt_tokens:  # else: the rest of a shifted context, read again
            self.prompt_tokens, self.cached_tokens = round.prompt_tokens, round.cached_tokens
        self.tally.add(round)

    def as_dict(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The object that ``run --json`` prints."""
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
            "settings": dict(settings),
        }
