"""One answer while it is generated: propose, decode, commit.

A round is ``propose``, one pass of the target, and ``commit``. Whoever runs the pass owns the loop:
`Decoder` for one conversation, ``DSparkLlama`` for its own, a `Batcher` for many at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace
from time import perf_counter

from dspark_gguf.draft import Drafter
from dspark_gguf.ending import Ending, Endless
from dspark_gguf.engine.protocol import Cache, Pass, Passes, Rows, run_alone
from dspark_gguf.noise import Draws
from dspark_gguf.records import NO_DRAFT, Draft, FinishReason, Round
from dspark_gguf.schedule import StoppingRule
from dspark_gguf.verify import Verifier


@dataclass(eq=False)
class Generation:
    """An answer in progress.

    Between rounds the target's cache holds every committed token but the last, or fewer if its
    memory cannot drop single tokens: then the next pass reads the missing ones again. The drafter's
    cache is a prefix of the same tokens. So an answer can be abandoned at any time, or alternate
    with others on the same caches, without cleaning up.

    `tokens` are the committed ones, including the prompt; `finish_reason` is why the answer ended,
    None until then. A prefix of the prompt that is still in the caches is not read again.
    """

    target: Cache
    drafter: Drafter  # where guesses come from
    scheduler: StoppingRule  # how many of them
    verifier: Verifier  # which of them are accepted, and the target's own token
    ending: Ending | Endless  # where the answer ends
    prompt: InitVar[Sequence[int]]  # token ids, at least one
    draws: Draws  # the randomness of the answer
    finish_reason: FinishReason | None = field(default=None, init=False)

    def __post_init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        self._prompt = len(prompt)  # tokens of the prompt, 0 once it is read
        self.read_seconds = 0.0  # seconds of `read_ahead` passes since the last round
        self._draft = NO_DRAFT
        self._mark = object()
        self._enter()

    def _enter(self) -> None:
        """Take over the caches: truncate them to the common prefix with this answer."""
        self.drafter.restart(self.tokens[:-1], self.draws)
        self._cached = self.target.reuse_prefix(self.tokens[:-1])
        self.target.user = self._mark

    def move(self, prompt: Sequence[int]) -> Generation:
        """Continue this answer after another prompt, which ends with the answer so far."""
        self.draws.move(len(prompt) - len(self.tokens))
        return replace(self, prompt=prompt)

    @property
    def room(self) -> int:
        """Number of tokens that may still come."""
        return self.ending.room(self.target.n_ctx - len(self.tokens))

    def resume(self) -> None:
        """Before a round: take over the caches again if another answer has used them."""
        if self.target.user is not self._mark:
            self._enter()

    def propose(self) -> Pass:
        """The target's next pass; in the first round that is the prompt, without a draft.

        Even if the caches hold it already: the text of a seed must not depend on the caches.
        """
        self.resume()
        run_alone(self.draft())
        return self.step()

    def draft(self) -> Passes[Draft]:
        """Draft tokens for the next `step`: the part of `propose` that runs a draft model."""
        self._started = perf_counter()
        self._draft = NO_DRAFT
        if not self._prompt:
            room = self.room
            most = min(room, self.target.max_rows) - 1
            plan = self.scheduler.plan(most, self.drafter.behind(self.tokens), room)
            self._draft = yield from self.drafter.steps(self.tokens, plan)
        return self._draft

    def step(self, draft: Draft | None = None) -> Pass:
        """The target's pass that verifies the draft, or the given one instead."""
        self._draft = self._draft if draft is None else draft  # it may be empty
        unread = self.tokens[self.target.length :]
        self._reread = 0 if self._prompt else len(unread) - 1
        self._proposed = perf_counter()
        return Pass(self.target, [*unread, *self._draft.tokens], len(self._draft) + 1)

    @property
    def unread(self) -> int:
        """Committed tokens that the target must read in the next pass, at least one."""
        return len(self.tokens) - self.target.length

    def read_ahead(self, count: int) -> Pass:
        """A pass that only prefills the next `count` tokens; no `commit` follows it.

        The caller adds its seconds to `read_seconds`.
        """
        place = self.target.length
        return Pass(self.target, self.tokens[place : min(place + count, len(self.tokens) - 1)], 0)

    def abandon(self) -> None:
        """Drop what was proposed: the pass was not run."""
        self.target.trim(len(self.tokens) - 1)
        self.drafter.trim(len(self.tokens) - 1)

    def commit(self, rows: Rows) -> Round:
        """Verify the draft with the rows of the pass, drop rejected tokens, and learn."""
        decoded, draft = perf_counter(), self._draft
        read, self.read_seconds = self.read_seconds, 0.0
        verdict = self.verifier(draft, rows, self.tokens)
        own = () if verdict.token is None else (verdict.token,)
        fresh, text = self.ending.take([*draft.tokens[: verdict.accepted], *own])
        self.tokens += fresh
        length = len(self.tokens) - len(own)
        self.target.trim(length)
        self.drafter.trim(length)
        self.finish_reason = self.ending.finish_reason or (None if own else "stop")
        if self.finish_reason is None and self.room <= 0:
            self.finish_reason = "context"
        round = Round(
            tuple(fresh),
            text,
            draft,
            verdict,
            reread=self._reread,
            seconds=perf_counter() - self._started + read,
            draft_seconds=self._proposed - self._started if draft.segments else 0.0,
            target_seconds=0.0 if self._prompt else decoded - self._proposed,
            prefill_seconds=decoded - self._proposed + read if self._prompt else 0.0,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached if self._prompt else 0,
            finish_reason=self.finish_reason,
        )
        self._prompt = 0
        self.scheduler.observe(round)
        self.drafter.observe(round)
        return round

    def end(self, reason: FinishReason) -> Round:
        """End the answer here, without another pass."""
        self.finish_reason, text = reason, self.ending.flush()
        cached = self._cached if self._prompt else 0
        return Round(
            (), text, prompt_tokens=self._prompt, cached_tokens=cached, finish_reason=reason
        )
