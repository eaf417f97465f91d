"""The round loop: draft, verify in one pass of the target, trim both caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import numpy as np

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.draft import Drafter, make_drafter, scheduled
from dspark_gguf.ending import Ending
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache, Tokenizer
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.records import NO_DRAFT, Answer, Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import Fixed, StoppingRule
from dspark_gguf.verify import Rule, make_rule, verify

#: Given the answer so far, a shorter token list to go on from; None: there is none.
Shift = Callable[[Sequence[int]], Sequence[int] | None]


class Decoder:
    """Speculative decoding, one round per target pass.

    True between rounds, hence at every yield:
      the target's cache holds every committed token but the last, or fewer where its memory
      cannot take back single tokens: then the next pass reads the missing ones again;
      the drafter's cache is a prefix of the committed tokens but the last.

    Args:
        target: the target model's cache.
        tokenizer: its tokens.
        drafter: where guesses come from.
        stopping_rule: how many of them.
        rule: which of them stand.
        sampler: the law of the output.
        seed: of the draws; None: a new one for each answer.

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
    ) -> None:
        self.target, self.tokenizer, self.drafter = target, tokenizer, drafter
        self.stopping_rule, self.rule, self.sampler = stopping_rule, rule, sampler
        self.seed = seed

    @classmethod
    def for_pair(
        cls, pair: Pair, sampling: Sampling | None = None, speculation: Speculation | None = None
    ) -> Decoder:
        """A decoder on loaded models.

        Args:
            pair: from ``load_pair``.
            sampling: how tokens are drawn; default: llama.cpp's defaults.
            speculation: when to draft and what to accept; default: lossless.

        """
        sampling, speculation = sampling or Sampling(), speculation or Speculation()
        stopping_rule: StoppingRule = Fixed(0)
        if speculation.mode != "off":
            speculation, stopping_rule = scheduled(pair, sampling, speculation)
        return cls(
            target=pair.target_cache,
            tokenizer=pair.vocabulary,
            drafter=make_drafter(pair, sampling, speculation),
            stopping_rule=stopping_rule,
            rule=make_rule(speculation),
            sampler=Sampler.of(sampling, pair.vocabulary),
            seed=sampling.seed,
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
            First a record of reading the prompt, without tokens; then a round for each pass of
            the target, the last one with a ``finish_reason``.

        Raises:
            UsageError: an empty prompt.
            ResourceError: a prompt that leaves no room for an answer.

        """
        self._require_room(prompt)
        rng = np.random.default_rng(self.seed) if rng is None else rng
        ending = Ending(limits or Limits(), self.tokenizer)
        try:
            yield self._read(prompt, rng)
            yield from self._rounds(list(prompt), ending, rng, shift)
        except Cancelled:
            yield Round((), ending.flush(), finish_reason="cancelled")

    def _rounds(
        self, tokens: list[int], ending: Ending, rng: np.random.Generator, shift: Shift | None
    ) -> Iterator[Round]:
        answer: list[int] = []
        reading = 0.0
        while room := ending.room(self.target.n_ctx - len(tokens)):
            started = perf_counter()
            most = min(room, self.target.max_rows) - 1
            plan = self.stopping_rule.plan(most, self.drafter.behind(tokens))
            draft = self.drafter.propose(tokens, plan) if plan.length else NO_DRAFT

            drafted = perf_counter()
            unread = tokens[self.target.length :]
            rows = self.target.advance([*unread, *draft.tokens], len(draft) + 1)
            decoded = perf_counter()

            past = self.sampler.history(tokens)
            verdict = verify(
                draft,
                lambda k: self.sampler(rows[k], past, draft.tokens[:k]),  # noqa: B023
                self.rule,
                rng,
            )
            fresh, text = ending.take([*draft.tokens[: verdict.accepted], verdict.token])
            tokens += fresh
            answer += fresh
            self.target.trim(len(tokens) - 1)
            self.drafter.trim(len(tokens) - 1)

            finish, shorter = ending.finish_reason, None
            if finish is None and len(tokens) >= self.target.n_ctx:
                shorter = shift(answer) if shift else None
                if shorter is None:
                    finish, text = "context", text + ending.flush()
            round = Round.of(
                draft,
                fresh,
                text=text,
                accepted=min(verdict.accepted, len(fresh)),
                match_chances=verdict.match_chances,
                reread=len(unread) - 1,
                seconds=reading + perf_counter() - started,
                draft_seconds=0.0 if draft is NO_DRAFT else drafted - started,
                target_seconds=decoded - drafted,
                prefill_seconds=reading,
                finish_reason=finish,
            )
            self.stopping_rule.observe(round)
            self.drafter.observe(round)
            yield round
            if finish:
                return
            reading = 0.0
            if shorter is not None:
                # After the yield, so that a Ctrl-C during this long read loses no token.
                tokens = list(shorter)
                reading = self._read(tokens, rng).seconds
        yield Round((), ending.flush(), finish_reason="length")  # a budget of no tokens

    def _read(self, tokens: Sequence[int], rng: np.random.Generator) -> Round:
        """Bring the target's cache to `tokens` but the last; the drafter reads when it drafts."""
        started = perf_counter()
        self.drafter.restart(tokens[:-1], rng.spawn(1)[0])
        cached = self.target.restart(tokens[:-1])
        seconds = perf_counter() - started
        return Round(
            (),
            seconds=seconds,
            prefill_seconds=seconds,
            prompt_tokens=len(tokens),
            cached_tokens=cached,
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
