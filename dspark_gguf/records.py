"""The records that are passed between the parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dspark_gguf.dist import Dist

#: Why an answer ended: the model or a stop string, the token budget, the context, the user.
FinishReason = Literal["stop", "length", "context", "cancelled"]

#: The source of tokens that a grammar (almost) dictates.
GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive draft tokens of one source."""

    source: str  # the drafter's name, under which its scores are calibrated
    tokens: tuple[int, ...] = ()  # to verify [k]
    dists: tuple[Dist, ...] = ()  # the distribution that each was drawn from [k]
    #: Raw score of each guess, known before its token was drawn: of `tokens` and then of `untried`,
    #: or of one row more if drafting ended before that row's token.
    scores: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()  # wall time of each draft step; empty if guesses are free
    caught_up: int = 0  # tokens read before the first step
    untried: tuple[int, ...] = ()  # ids guessed after `tokens` that are not verified
    width: int = 0  # guesses that the pass made, if one pass makes them all

    @classmethod
    def of_guesses(
        cls, source: str, guesses: Sequence[int], scores: Sequence[float], count: int
    ) -> Segment:
        """A segment of free guesses, the first `count` of which are to be verified."""
        tokens = tuple(guesses[:count])
        dists = tuple(map(Dist.point, tokens))
        return cls(source, tokens, dists, tuple(scores), untried=tuple(guesses[count:]))

    def __len__(self) -> int:
        return len(self.tokens)

    def verify(self, count: int) -> Segment:
        """The same guesses, the first `count` of which are to be verified."""
        guesses = self.tokens + self.untried
        dists = self.dists[:count] or ()
        dists += tuple(map(Dist.point, guesses[len(dists) : count]))
        return replace(self, tokens=guesses[:count], dists=dists, untried=guesses[count:])

    def cut(self, count: int) -> Segment:
        """Only its first `count` tokens, with the whole cost."""
        lists = {name: getattr(self, name)[:count] for name in ("tokens", "dists", "scores")}
        return replace(self, untried=(), **lists)


@dataclass(init=False, unsafe_hash=True, slots=True)
class Draft:
    """Proposed tokens, in order, segment by segment."""

    segments: tuple[Segment, ...]
    tokens: tuple[int, ...]  # of all segments [k]

    def __init__(self, *segments: Segment) -> None:
        self.segments = segments
        self.tokens = sum((each.tokens for each in segments), ())

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dists(self) -> tuple[Dist, ...]:
        """The distribution that each token was drawn from ``[k]``."""
        return sum((each.dists for each in self.segments), ())

    @property
    def is_dictated(self) -> bool:
        """Whether it only comes from a grammar, without a plan."""
        return bool(self.tokens) and all(each.source == GRAMMAR for each in self.segments)

    @property
    def steps(self) -> int:
        """Draft steps that were paid for; a pass for several guesses counts as many."""
        return sum(each.width or len(each.seconds) for each in self.segments)

    def verify(self, count: int) -> Draft:
        """The same draft, with the first `count` of its tokens and further guesses to verify.

        Draft steps after these stay, for what they cost.
        """
        segments: list[Segment] = []
        is_cut = False
        for k, segment in enumerate(self.segments):
            is_last = k == len(self.segments) - 1
            here = count if is_last else min(count, len(segment))
            if not is_cut:
                segments.append(segment if here == len(segment) else segment.verify(here))
            elif segment.seconds:
                segments.append(replace(segment, tokens=(), dists=(), untried=()))
            count -= here
            is_cut = is_cut or here < len(segment)
        return Draft(*segments)

    def outcomes(self, emitted: Sequence[int]) -> Iterator[tuple[int, Segment, tuple[float, ...]]]:
        """Compare each segment's guesses with the tokens that the round `emitted`.

        Yields the segment's offset in the draft, the segment, and its outcomes: 1 for each guess
        that was emitted, then 0 for the first that was not; nothing after a wrong token.
        """
        place, right = 0, True
        for segment in self.segments:
            seen: list[float] = []
            if right:
                guesses = segment.tokens + segment.untried
                for guess, token in zip(guesses, emitted[place:], strict=False):
                    seen.append(float(guess == token))
                    if guess != token:
                        break
            yield place, segment, tuple(seen)
            count = len(segment.tokens)
            # All ones, except perhaps for a zero at the end.
            right = right and len(seen) >= count and (not count or seen[count - 1] == 1.0)
            place += count


#: A round without a draft: plain decoding.
NO_DRAFT = Draft()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying a draft."""

    accepted: int  # how many draft tokens were accepted, from the first
    token: int | None  # the target's own token after them; None: the answer ends without one


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the target and its results. Times are wall times."""

    tokens: tuple[int, ...]  # emitted, in order; empty if the answer ends without a new token
    #: The new text of the answer. It lags behind the tokens while a character or a possible stop
    #: string is incomplete.
    text: str = ""
    draft: Draft = NO_DRAFT
    verdict: Verdict | None = None  # None: there was no pass
    reread: int = 0  # tokens that the target read again after a rollback
    seconds: float = 0.0  # of the round, without what the consumer does between rounds
    draft_seconds: float = 0.0  # of these, drafting
    target_seconds: float = 0.0  # of these, the target's pass
    prefill_seconds: float = 0.0  # of these, the prefill, which yields the first token
    prompt_tokens: int = 0  # in the first round of an answer
    cached_tokens: int = 0  # of these, tokens that were still in the target's cache
    finish_reason: FinishReason | None = None  # set on the last round of an answer

    @property
    def drafted(self) -> int:
        """Draft tokens that were verified."""
        return len(self.draft)

    @property
    def accepted(self) -> int:
        """How many of them the target accepted and the answer had room for."""
        return min(self.verdict.accepted, len(self.tokens)) if self.verdict else 0
