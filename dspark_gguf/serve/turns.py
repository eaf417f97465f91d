"""One answer in the engine, its updates, and the usage and timings of finished answers."""

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
class TokenLogprob:
    """A token of the answer with its log-probability under the target, in nats.

    `top` has the most probable tokens with theirs, best first. Zero probability is -9999.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """What one or more passes added to a turn; if it is over, `finish` or `error` says why."""

    turn: Turn
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    is_over: bool = False
    finish: FinishReason | None = None
    error: Exception | None = None

    def after(self, earlier: Update | None) -> Update:
        """Both updates as one, the earlier first."""
        if earlier is None:
            return self
        text, logprobs = earlier.text + self.text, earlier.logprobs + self.logprobs
        return replace(self, text=text, logprobs=logprobs)


@dataclass(eq=False)
class Turn:
    """One answer to a prompt.

    Attributes:
        top_logprobs: most probable tokens to report with each token; None: no log-probabilities.
        drafts: False: plain decoding of this answer.
        spelled: control tokens that become text in the answer.
        post: called with each update in the event loop; must not block.
        is_cancelled: set by any thread; the turn ends before the next pass.
        was_sent: whether an update was posted.
        began: when it was made, in seconds.
    """

    prompt: Sequence[int]  # token ids
    sampling: Sampling
    limits: Limits
    draws: Draws
    index: int = 0  # among the answers to one HTTP request
    top_logprobs: int | None = None
    drafts: bool = True
    spelled: Mapping[int, bytes] | None = None
    post: Callable[[Update], object] = lambda _: None
    is_cancelled: bool = False
    was_sent: bool = False
    began: float = field(default_factory=perf_counter)
    request: Request | None = None  # the batcher's, once it was submitted
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        return self.request.answer if self.request else Answer()

    def collect_logprobs(self, rows: Rows, tokens: Sequence[int]) -> None:
        """Add the tokens of a round, each drawn from its row of logits, to the next update."""
        top = self.top_logprobs or 0
        self._logprobs += [_logprob(rows[k], token, top) for k, token in enumerate(tokens)]

    def update(self, round: Round, error: Exception | None = None) -> Update:
        """The update for a round, with the log-probabilities collected since the last one."""
        logprobs, self._logprobs = tuple(self._logprobs), []
        is_over = error is not None or (self.request is not None and self.request.is_over)
        return Update(self, round.text, logprobs, is_over, round.finish_reason, error)


def post_all(updates: Sequence[Update]) -> None:
    """Post updates to their turns; called in the event loop."""
    for update in updates:
        update.turn.post(update)


def _logprob(row: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """The log-probabilities in a row of logits ``[n_vocab]`` of `token` and the `top` best."""
    logits = row.astype(np.float64)
    total = math.log(np.exp(logits - logits.max()).sum()) + logits.max()
    best = np.argpartition(logits, -top)[-top:] if 0 < top < len(logits) else np.arange(0)
    best = best[np.argsort(-logits[best])]

    def value(each: int) -> float:
        return max(float(logits[each] - total), -9999.0)

    return TokenLogprob(token, value(token), tuple((int(each), value(each)) for each in best))


def usage(turns: Sequence[Turn]) -> dict[str, Any]:
    """OpenAI's ``usage``; a prompt with several answers counts once."""
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
    """llama-server's ``timings``, summed over the answers."""
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
