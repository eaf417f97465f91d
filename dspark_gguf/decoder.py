"""The heart: an answer on its way, and the loop that drives it.

A round is ``propose``, one pass of the target, ``commit``. Whoever owns the pass drives the loop:
`Decoder` for one conversation, ``DSparkLlama`` for its own, a server for many in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from dspark_gguf.assemble import Begin, answer_grammar, assemble
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.draft import Drafter, within
from dspark_gguf.ending import Ending
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache, Rows, Tokenizer
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.records import NO_DRAFT, Draft, FinishReason, Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import StoppingRule
from dspark_gguf.tally import Answer
from dspark_gguf.verify import DistVerifier, Rule, Verifier

#: Given the answer so far, a shorter token list to go on from; None: there is none.
Shift = Callable[[Sequence[int]], Sequence[int] | None]


class Stop(Protocol):
    """Where an answer ends, and its text on the way there; see `Ending`."""

    finish_reason: FinishReason | None

    def room(self, free: int) -> int:
        """Tokens that may still come, with `free` places in the context."""

    def take(self, fresh: Sequence[int]) -> tuple[list[int], str]:
        """The tokens that belong to the answer, and the text that is certain now."""

    def flush(self) -> str:
        """What was held back: nothing will follow it."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the target must decode: `tokens` behind those it holds, a row for the last `n_rows`."""

    tokens: Sequence[int]
    n_rows: int


class Generation:
    """One answer on its way.

    True between rounds:
      the target's cache holds every committed token but the last, or fewer where its memory
      cannot take back single tokens: then the next pass reads the missing ones again;
      the drafter's cache is a prefix of the committed tokens but the last.
    So an answer can be abandoned at any time; nothing has to be cleaned up.

    Args:
        target: the target model's cache.
        drafter: where guesses come from.
        scheduler: how many of them.
        verifier: which of them stand, and what the target says itself.
        ending: where the answer ends.
        prompt: token ids, at least one. What the caches still hold of it is not read again.
        rng: source of the drafter's draws.

    Attributes:
        tokens: all that is committed, the prompt included.
        finish_reason: why the answer has ended; None while it goes on.

    """

    def __init__(
        self,
        target: Cache,
        drafter: Drafter,
        scheduler: StoppingRule,
        verifier: Verifier,
        ending: Stop,
        prompt: Sequence[int],
        rng: np.random.Generator,
    ) -> None:
        self.target, self.drafter, self.scheduler = target, drafter, scheduler
        self.verifier, self.ending = verifier, ending
        self.tokens = list(prompt)
        self.finish_reason: FinishReason | None = None
        self._prompt = len(prompt)  # tokens of it, until it is read
        self._draft = NO_DRAFT
        drafter.restart(prompt[:-1], rng)
        self._cached = target.keep(prompt[:-1])

    def moved(self, prompt: Sequence[int], rng: np.random.Generator) -> Generation:
        """The same answer, going on behind a shorter prompt that has it at its end."""
        return Generation(
            self.target, self.drafter, self.scheduler, self.verifier, self.ending, prompt, rng
        )

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self.ending.room(self.target.n_ctx - len(self.tokens))

    def propose(self) -> Step:
        """What the target must decode next; in the first round that is the prompt, alone.

        Also where the caches hold it already: a seed's text must not depend on what they hold.
        """
        self._started = perf_counter()
        self._draft = NO_DRAFT if self._prompt else self._drafted()
        unread = self.tokens[self.target.length :]
        self._reread = 0 if self._prompt else len(unread) - 1
        self._proposed = perf_counter()
        return Step([*unread, *self._draft.tokens], len(self._draft) + 1)

    def _drafted(self) -> Draft:
        room = min(self.room, self.target.max_rows) - 1
        plan = self.scheduler.plan(room, self.drafter.behind(self.tokens))
        return self.drafter.propose(self.tokens, plan)

    def commit(self, rows: Rows) -> Round:
        """Verify the draft with the rows of the step, take back what was rejected, and learn."""
        decoded, draft = perf_counter(), self._draft
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
            seconds=perf_counter() - self._started,
            draft_seconds=self._proposed - self._started if draft.segments else 0.0,
            target_seconds=0.0 if self._prompt else decoded - self._proposed,
            prefill_seconds=decoded - self._proposed if self._prompt else 0.0,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached if self._prompt else 0,
            finish_reason=self.finish_reason,
        )
        self._prompt = 0
        self.scheduler.observe(round)
        self.drafter.observe(round)
        return round

    def end(self, reason: FinishReason) -> Round:
        """The answer ends here, without another pass."""
        self.finish_reason = reason
        return Round(
            (),
            self.ending.flush(),
            prompt_tokens=self._prompt,
            cached_tokens=self._cached if self._prompt else 0,
            finish_reason=reason,
        )


class Decoder:
    """Speculative decoding of one conversation, one round per pass of the target.

    Args:
        target: the target model's cache.
        tokenizer: its tokens.
        drafter: where guesses come from.
        stopping_rule: how many of them.
        rule: which of them stand.
        sampler: the law of the output.
        seed: of the draws; None: a new one for each answer.
        grammar: begins the grammar that each answer must fit; None: there is none.
        shadows_match: see `DistVerifier`.

    """

    def __init__(
        self,
        target: Cache,
        tokenizer: Tokenizer,
        drafter: Drafter,
        stopping_rule: StoppingRule,
        rule: Rule,
        sampler: Sampler,
        seed: int | None = None,
        grammar: Begin | None = None,
        shadows_match: bool = False,
    ) -> None:
        self.target, self.tokenizer, self.drafter = target, tokenizer, drafter
        self.stopping_rule, self.rule, self.sampler = stopping_rule, rule, sampler
        self.seed, self.grammar, self.shadows_match = seed, grammar, shadows_match

    @classmethod
    def for_pair(
        cls, pair: Pair, sampling: Sampling | None = None, speculation: Speculation | None = None
    ) -> Decoder:
        """A decoder on loaded models.

        Args:
            pair: from ``load_pair``.
            sampling: how tokens are drawn; default: llama.cpp's defaults.
            speculation: when to draft and what to accept; default: lossless.

        Raises:
            UsageError: settings that these models cannot honour.

        """
        sampling, speculation = sampling or Sampling(), speculation or Speculation()
        parts = assemble(
            pair.target_cache,
            pair.draft_cache,
            pair.vocabulary,
            sampling,
            speculation,
            lambda: pair.learned(speculation),
        )
        return cls(
            pair.target_cache,
            pair.vocabulary,
            parts.drafter,
            parts.scheduler,
            parts.rule,
            Sampler.of(sampling, pair.vocabulary),
            sampling.seed,
            answer_grammar(pair.vocabulary, sampling),
            parts.shadows_match,
        )

    def answer(self, prompt: Sequence[int], limits: Limits | None = None) -> Answer:
        """All rounds of `generate`, put together."""
        answer = Answer()
        for round in self.generate(prompt, limits):
            answer.add(round)
        return answer

    def generate(
        self,
        prompt: Sequence[int],
        limits: Limits | None = None,
        rng: np.random.Generator | None = None,
        shift: Shift | None = None,
    ) -> Iterator[Round]:
        """Generate an answer; abandon the iterator at any time.

        Args:
            prompt: token ids, at least one. What the caches still hold of it is not read again.
            limits: where to stop; default: where the model stops or the context ends.
            rng: source of the draws; default: a new generator from `seed`.
            shift: called with the answer so far when the context is full.

        Yields:
            A round for each pass of the target, the last one with a ``finish_reason``. The first
            one reads the prompt and brings the first token.

        Raises:
            UsageError: an empty prompt.
            ResourceError: a prompt that leaves no room for an answer.

        """
        self._require_room(prompt)
        rng = np.random.default_rng(self.seed) if rng is None else rng
        ending = Ending(limits or Limits(), self.tokenizer)
        run, said = self.start(prompt, ending, rng), list[int]()
        try:
            if not run.room:
                yield run.end("length")
            while run.finish_reason is None:
                step = run.propose()
                round = run.commit(self.target.decode(step.tokens, step.n_rows))
                said += round.tokens
                if round.finish_reason != "context":
                    yield round
                elif shorter := shift(said) if shift else None:
                    # Yielded first, so that a Ctrl-C while the rest is read again loses no token.
                    yield replace(round, finish_reason=None)
                    run = run.moved(shorter, rng.spawn(1)[0])
                else:
                    yield replace(round, text=round.text + ending.flush())
        except Cancelled:
            yield run.end("cancelled")

    def start(self, prompt: Sequence[int], ending: Stop, rng: np.random.Generator) -> Generation:
        """An answer whose passes are somebody else's business."""
        grammar = None if self.grammar is None else self.grammar()
        drafter = within(grammar, self.drafter, self.stopping_rule)
        verifier = DistVerifier(self.sampler, self.rule, rng, grammar, self.shadows_match)
        return Generation(
            self.target, drafter, self.stopping_rule, verifier, ending, prompt, rng.spawn(1)[0]
        )

    def _require_room(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise UsageError("a prompt of at least one token", "an empty one", "type some text")
        if len(prompt) >= self.target.n_ctx:
            raise ResourceError(
                f"room for a prompt of {len(prompt)} tokens and an answer",
                f"a context of {self.target.n_ctx}",
                "shorten the prompt, or use a larger --ctx-size",
            )
