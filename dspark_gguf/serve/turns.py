"""One answer on its way through the engine, and the numbers that came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dspark_gguf.admission import Request
from dspark_gguf.config import Limits, Sampling
from dspark_gguf.engine.protocol import Rows
from dspark_gguf.noise import Draws
from dspark_gguf.records import FinishReason, Round
from dspark_gguf.tally import Answer, Tally


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of the answer with its log-probability under the target, and those of the best."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """What some passes brought a turn; `finish` is why it has ended, or `error`."""

    turn: Turn
    text: str
    scored: tuple[Scored, ...] = ()
    is_over: bool = False
    finish: FinishReason | None = None
    error: Exception | None = None

    def after(self, earlier: Update | None) -> Update:
        """Both as one, the earlier first."""
        if earlier is None:
            return self
        text, scored = earlier.text + self.text, earlier.scored + self.scored
        return replace(self, text=text, scored=scored)


@dataclass(eq=False)
class Turn:
    """A prompt to be answered.

    Attributes:
        post: called with each update, where they are waited for; it must not block.
        drafts: off: plain decoding, for this one alone.
        top: with each token's log-probability, those of so many others; None: none at all.
        spelled: control tokens that are text in the answer.
        has_left: whether nobody waits for it any more.
        has_begun: whether something of it was handed out.
        began: when it was submitted, in seconds.
    """

    prompt: Sequence[int]
    sampling: Sampling
    limits: Limits
    draws: Draws
    index: int = 0
    top: int | None = None
    drafts: bool = True
    spelled: Mapping[int, bytes] | None = None
    post: Callable[[Update], object] = print
    has_left: bool = False
    has_begun: bool = False
    began: float = field(default_factory=perf_counter)
    request: Request | None = None
    _scored: list[Scored] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        """All of it so far."""
        return self.request.answer if self.request else Answer()

    def watch(self, rows: Rows, tokens: Sequence[int]) -> None:
        """Note what the target thought of the tokens of a round."""
        top = self.top or 0
        self._scored += [score(rows[k], token, top) for k, token in enumerate(tokens)]

    def update(self, round: Round, error: Exception | None = None) -> Update:
        """A round, with what was noted."""
        scored, self._scored = tuple(self._scored), []
        is_over = error is not None or (self.request is not None and self.request.is_over)
        return Update(self, round.text, scored, is_over, round.finish_reason, error)


def post_all(told: Sequence[Update]) -> None:
    """Hand out what passes brought."""
    for update in told:
        update.turn.post(update)


def score(row: npt.NDArray[np.float32], token: int, top: int) -> Scored:
    """Of a row of logits ``[n_vocab]``."""
    logits = row.astype(np.float64)
    total = math.log(np.exp(logits - logits.max()).sum()) + logits.max()
    best = np.argpartition(logits, -top)[-top:] if 0 < top < len(logits) else np.arange(0)
    best = best[np.argsort(-logits[best])]
    return Scored(
        token,
        float(logits[token] - total),
        tuple((int(each), float(logits[each] - total)) for each in best),
    )


def usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """OpenAI's ``usage``: a prompt that has several answers counts once."""
    prompts = {id(turn.prompt): turn for turn in reversed(turns)}.values()
    prompt = sum(len(turn.prompt) for turn in prompts)
    completion = sum(len(turn.answer.tokens) for turn in turns)
    cached = sum(turn.answer.cached_tokens for turn in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings(turns: Sequence[Turn]) -> dict[str, Any]:
    """llama-server's ``timings``, in milliseconds."""
    total = Tally()
    for turn in turns:
        total.merge(turn.answer.tally)
    cached = sum(turn.answer.cached_tokens for turn in turns)
    read = sum(turn.answer.prompt_tokens for turn in turns) - cached
    out: dict[str, Any] = {"cache_n": cached}
    for name, count, seconds in (
        ("prompt", read, total.prefill_seconds), ("predicted", total.tokens, total.decode_seconds),
    ):  # fmt: skip
        out |= {
            f"{name}_n": count,
            f"{name}_ms": round(1000 * seconds, 3),
            f"{name}_per_token_ms": round(1000 * seconds / count, 3) if count else 0.0,
            f"{name}_per_second": round(count / seconds, 3) if seconds else 0.0,
        }
    return {**out, "draft_n": total.drafted, "draft_n_accepted": total.accepted}
