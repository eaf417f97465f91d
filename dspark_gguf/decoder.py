"""The heart: an answer on its way, and the loop that drives it.

A round is ``propose``, one pass of the target, ``commit``. Whoever runs the pass drives the loop:
`Decoder` for one conversation, ``DSparkLlama`` for its own, a server for many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, cast

from dspark_gguf.assemble import Begin, MakeRule, answer_grammar, assemble
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.draft import Drafter, within
from dspark_gguf.ending import Ending, Endless
from dspark_gguf.engine.protocol import Cache, Pass, Passes, Rows, Tokenizer, run_alone
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.learned import Learned
from dspark_gguf.noise import Draws, Noise
from dspark_gguf.records import NO_DRAFT, Draft, FinishReason, Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import StoppingRule, make_stopping_rule
from dspark_gguf.tally import Answer
from dspark_gguf.verify import DistVerifier, Rule, Verifier

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair
    from dspark_gguf.engine.template import ChatTemplate, Prompt

#: Given the answer so far, a shorter token list to go on from, or None.
Shift = Callable[[Sequence[int]], Sequence[int] | None]


@dataclass(eq=False)
class Generation:
    """One answer on its way.

    Between rounds the target's cache holds every committed token but the last, or fewer if its
    memory cannot drop single tokens: then the next pass reads the missing ones again. The drafter's
    cache is a prefix of the same tokens. So an answer can be abandoned at any time; nothing has to
    be cleaned up.

    `tokens` are the committed ones, the prompt included; `finish_reason` says why the answer has
    ended, None while it goes on. What the caches still hold of the prompt is not read again.
    """

    target: Cache
    drafter: Drafter  # where guesses come from
    scheduler: StoppingRule  # how many of them
    verifier: Verifier  # which of them stand, and what the target says itself
    ending: Ending | Endless  # where the answer ends
    prompt: InitVar[Sequence[int]]  # token ids, at least one
    draws: Draws  # the randomness of the answer
    finish_reason: FinishReason | None = field(default=None, init=False)

    def __post_init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        self._prompt = len(prompt)  # its tokens, until it is read
        self.read_seconds = 0.0  # of passes since the last round that read ahead
        self._draft = NO_DRAFT
        self.drafter.restart(prompt[:-1], self.draws)
        self._cached = self.target.reuse_prefix(prompt[:-1])

    def move(self, prompt: Sequence[int]) -> Generation:
        """The same answer, continued after another prompt that ends with it."""
        self.draws.move(len(prompt) - len(self.tokens))
        return replace(self, prompt=prompt)

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self.ending.room(self.target.n_ctx - len(self.tokens))

    def propose(self) -> Pass:
        """What the target must decode next; in the first round that is the prompt, alone.

        Even if the caches hold it already: the text of a seed must not depend on what they hold.
        """
        run_alone(self.draft())
        return self.step()

    def draft(self) -> Passes[Draft]:
        """Draft tokens for the next `step`: all that `propose` needs a draft model for."""
        self._started = perf_counter()
        self._draft = NO_DRAFT
        if not self._prompt:
            room = self.room
            most = min(room, self.target.max_rows) - 1
            plan = self.scheduler.plan(most, self.drafter.behind(self.tokens), room)
            self._draft = yield from self.drafter.steps(self.tokens, plan)
        return self._draft

    def step(self, draft: Draft | None = None) -> Pass:
        """The pass of the target that verifies the draft, or another one in its place."""
        self._draft = draft or self._draft
        unread = self.tokens[self.target.length :]
        self._reread = 0 if self._prompt else len(unread) - 1
        self._proposed = perf_counter()
        return Pass(self.target, [*unread, *self._draft.tokens], len(self._draft) + 1)

    @property
    def unread(self) -> int:
        """Committed tokens that the target must read in the next pass, one at least."""
        return len(self.tokens) - self.target.length

    def read_ahead(self, count: int) -> Pass:
        """A pass over the next `count` unread tokens and nothing else, for which no `commit` comes.

        Whoever runs it adds its seconds to `read_seconds`.
        """
        place = self.target.length
        return Pass(self.target, self.tokens[place : min(place + count, len(self.tokens) - 1)], 0)

    def abandon(self) -> None:
        """Forget what was proposed: its pass was not done."""
        self.target.trim(len(self.tokens) - 1)
        self.drafter.trim(len(self.tokens) - 1)

    def commit(self, rows: Rows) -> Round:
        """Verify the draft with the rows of the step, drop what was rejected, and learn."""
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


@dataclass(eq=False)
class Decoder:
    """Speculative decoding of one conversation, one round per pass of the target."""

    target: Cache
    tokenizer: Tokenizer  # the target's
    drafter: Drafter  # where guesses come from
    stopping_rule: StoppingRule  # how many of them
    rule: Rule  # which of them stand
    sampler: Sampler  # the distribution of the output
    seed: int | None = None  # of the noise; None: a new one for each answer
    grammar: Begin | None = None  # begins the grammar that an answer must fit
    template: ChatTemplate | None = None  # turns text and messages into tokens

    @classmethod
    def for_pair(
        cls,
        pair: Pair,
        sampling: Sampling | None = None,
        speculation: Speculation | None = None,
        learned: Learned | None = None,
        conversation: int = 0,
        schedule: MakeRule = make_stopping_rule,
    ) -> Decoder:
        """A decoder on loaded models.

        Args:
            pair: from ``load_pair``.
            sampling: how tokens are drawn; default: llama.cpp's defaults.
            speculation: when to draft and what to accept; default: lossless.
            learned: to use and to add to, in the place of what the pair has learned.
            conversation: the number of its caches, of those that the pair was opened for.
            schedule: makes the stopping rule.

        Raises:
            UsageError: settings that these models cannot honour.

        """
        sampling, speculation = sampling or Sampling(), speculation or Speculation()
        cache, vocabulary = pair.target_caches[conversation], pair.vocabulary
        parts = assemble(
            cache,
            lambda: pair.draft_cache(conversation),
            vocabulary,
            sampling,
            speculation,
            lambda: pair.learned(speculation, into=learned),
            schedule=schedule,
        )
        return cls(
            cache,
            vocabulary,
            parts.drafter,
            parts.scheduler,
            parts.rule,
            Sampler.of(sampling, vocabulary),
            sampling.seed,
            answer_grammar(vocabulary, sampling),
            pair.template,
        )

    def answer(self, prompt: Prompt, limits: Limits | None = None) -> Answer:
        """All rounds of `generate`, put together."""
        answer = Answer()
        for round in self.generate(prompt, limits):
            answer.add(round)
        return answer

    def reset(self) -> None:
        """Empty both caches: the next prompt is read from its first token on."""
        self.target.trim(0)
        self.drafter.trim(0)

    def generate(
        self,
        prompt: Prompt,
        limits: Limits | None = None,
        draws: Draws | None = None,
        shift: Shift | None = None,
    ) -> Iterator[Round]:
        """Generate an answer; abandon the iterator at any time.

        Args:
            prompt: what the user says, a conversation as messages whose last one is the user's, or
                token ids. What the caches still hold of it is not read again.
            limits: where to stop; default: where the model stops or the context ends.
            draws: the randomness; default: the noise of `seed`.
            shift: called with the answer so far when the context is full.

        Yields:
            A round for each pass of the target, the last one with a ``finish_reason``. The first
            reads the prompt and brings the first token.

        Raises:
            UsageError: an empty prompt.
            ResourceError: a prompt that leaves no room for an answer.

        """
        prompt = self._ids(prompt)
        require_room(prompt, self.target.n_ctx)
        draws = Noise.of(self.seed) if draws is None else draws
        draws.move(len(prompt))
        ending = Ending(limits or Limits(), self.tokenizer)
        run, said = self.start(prompt, ending, draws), list[int]()
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
                    run = run.move(shorter)
                else:
                    yield replace(round, text=round.text + ending.flush())
        except Cancelled:
            yield run.end("cancelled")

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if self.template is not None:
            return self.template.ids(prompt)
        if isinstance(prompt, str):
            problem = "this decoder has no chat template for text"
            raise UsageError(problem, "Give it token ids.")
        return cast(Sequence[int], prompt)

    def start(self, prompt: Sequence[int], ending: Ending | Endless, draws: Draws) -> Generation:
        """An answer whose passes the caller runs."""
        grammar = None if self.grammar is None else self.grammar()
        drafter = within(grammar, self.drafter, self.stopping_rule)
        verifier = DistVerifier(self.sampler, self.rule, draws, grammar)
        return Generation(self.target, drafter, self.stopping_rule, verifier, ending, prompt, draws)


def require_room(prompt: Sequence[int], n_ctx: int) -> None:
    """Refuse an empty prompt, and one that leaves no room for an answer."""
    if not prompt:
        raise UsageError("the prompt is empty", "Type some text.")
    if len(prompt) >= n_ctx:
        problem = f"a prompt of {len(prompt)} tokens leaves no room in a context of {n_ctx}"
        raise ResourceError(problem, "Shorten the prompt, or use a larger --ctx-size.")
