"""The records that travel between the parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

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
            if right:
                for guess, token in zip(
                    segment.tokens + segment.untried, emitted[place:], strict=False
                ):
                    told.append(float(guess == token))
                    if guess != token:
                        break
            yield place, segment, tuple(told)
            count = len(segment.tokens)
            # What is told are ones, and at most a last zero.
            right = right and len(told) >= count and (not count or told[count - 1] == 1.0)
            place += count


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
