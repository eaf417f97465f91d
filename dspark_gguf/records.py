"""The records that travel between the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dspark_gguf.dist import Dist

#: Why an answer ended: the model or a stop string, the token budget, the context, the user.
FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Guesses:
    """What a drafter guessed for nothing, whether or not it was drafted.

    Attributes:
        tokens: the guessed ids.
        scores: the raw score of each.
        place: draft tokens before the first of them.

    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    place: int = 0

    def fates(self, before: Sequence[int], emitted: Sequence[int]) -> tuple[float, ...]:
        """1 for each guess that was emitted, up to the first one that was not: 0.

        Args:
            before: the draft's tokens before the first guess.
            emitted: the tokens of the round.

        """
        if tuple(emitted[: self.place]) != tuple(before[: self.place]):
            return ()
        fates: list[float] = []
        for guess, token in zip(self.tokens, emitted[self.place :], strict=False):
            fates.append(float(guess == token))
            if guess != token:
                break
        return tuple(fates)


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens, in order.

    Attributes:
        tokens: the proposed ids ``[k]``.
        laws: the distribution that each of them was drawn from ``[k]``.
        scores: the raw score of every row that was looked at, known before its token was drawn:
            ``[k]``, or ``[k + 1]`` where drafting ended before the last one's token.
        look_seconds: wall time of each of these looks.
        caught_up: tokens read before the first look.
        first_look: draft tokens before the first look, which cost nothing.
        last_look: draft tokens up to the last one that was looked for; None: all of them.
        guesses: all that was guessed for nothing.

    """

    tokens: tuple[int, ...] = ()
    laws: tuple[Dist, ...] = ()
    scores: tuple[float, ...] = ()
    look_seconds: tuple[float, ...] = ()
    caught_up: int = 0
    first_look: int = 0
    last_look: int | None = None
    guesses: tuple[Guesses, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


#: A round without a draft: plain decoding.
NO_DRAFT = Draft()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target made of a draft.

    Attributes:
        accepted: how many draft tokens stand, from the first.
        token: the target's own token after them.
        match_chances: see `Round`; empty where the rule does not draw from the draft's law.

    """

    accepted: int
    token: int
    match_chances: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of the target and what came of it.

    Attributes:
        tokens: ids emitted, in order. Empty in the first record of an answer, which is about
            reading the prompt, and where an answer ends without a new token.
        text: the new characters of the answer. Lags behind the tokens where a character or a
            possible stop string is not complete yet.
        drafted: draft tokens that were verified.
        accepted: how many of them the target kept, whether or not the answer had room for them.
        scores: the raw score of every draft row that was looked at.
        look_seconds: wall time of each of these looks.
        caught_up: tokens the drafter read before the first look.
        reread: tokens that the target read again, because its cache had lost them with a rejected
            draft.
        first_look: draft tokens before the first look, which cost nothing.
        last_look: draft tokens up to the last one that was looked for; None: all of them.
        guessed: of each series of free guesses, the raw scores, and 1 or 0 for each guess whose
            fate was seen.
        match_chances: for each draft token whose fate was seen, the probability that the target's
            own draw is the draft's most probable token.
        seconds: wall time of the round; what the consumer does between rounds is not in it.
        draft_seconds: of these, drafting.
        target_seconds: of these, the target's pass.
        prefill_seconds: of these, reading the prompt.
        prompt_tokens: tokens of the prompt; zero but in the first record of an answer.
        cached_tokens: of these, tokens the target still had in its cache.
        finish_reason: set on the last round of an answer.

    """

    tokens: tuple[int, ...]
    text: str = ""
    drafted: int = 0
    accepted: int = 0
    scores: tuple[float, ...] = ()
    look_seconds: tuple[float, ...] = ()
    caught_up: int = 0
    reread: int = 0
    first_look: int = 0
    last_look: int | None = None
    guessed: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    match_chances: tuple[float, ...] = ()
    seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    prefill_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, draft: Draft, tokens: Sequence[int], **facts: Any) -> Round:
        """The record of a pass that verified `draft` and emitted `tokens`."""
        return cls(
            tuple(tokens),
            drafted=len(draft),
            scores=draft.scores,
            look_seconds=draft.look_seconds,
            caught_up=draft.caught_up,
            first_look=draft.first_look,
            last_look=draft.last_look,
            guessed=tuple(
                (some.scores, some.fates(draft.tokens, tokens)) for some in draft.guesses
            ),
            **facts,
        )


@dataclass(slots=True)
class Tally:
    """Sums over rounds: what llama.cpp calls statistics."""

    rounds: int = 0
    plain_rounds: int = 0
    tokens: int = 0
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
    def tokens_per_round(self) -> float:
        """Tokens that one pass of the target yields; plain decoding has 1."""
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of generation, reading the prompt not counted."""
        seconds = self.seconds - self.prefill_seconds
        return self.tokens / seconds if seconds > 0 else 0.0

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
        self.prompt_tokens += round.prompt_tokens
        self.cached_tokens += round.cached_tokens
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
