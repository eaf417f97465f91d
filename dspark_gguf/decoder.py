"""Speculative decoding of one conversation, one round per pass of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from dspark_gguf.assemble import Begin, MakeRule, answer_grammar, assemble
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.draft import Drafter, within
from dspark_gguf.ending import Ending, Endless
from dspark_gguf.engine.protocol import Cache, Tokenizer
from dspark_gguf.errors import CacheFullError, Cancelled, ResourceError, UsageError
from dspark_gguf.generation import Generation
from dspark_gguf.learned import Learned
from dspark_gguf.noise import Draws, Noise
from dspark_gguf.records import Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import StoppingRule, make_stopping_rule
from dspark_gguf.tally import Answer
from dspark_gguf.verify import DistVerifier, Rule

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair
    from dspark_gguf.engine.template import ChatTemplate, Prompt

#: Given the answer so far, returns a shorter token list to continue from, or None.
Shift = Callable[[Sequence[int]], Sequence[int] | None]


@dataclass(eq=False)
class Decoder:
    """Speculative decoding of one conversation, one round per pass of the target."""

    target: Cache
    tokenizer: Tokenizer  # the target's
    drafter: Drafter  # where guesses come from
    stopping_rule: StoppingRule  # how many of them
    rule: Rule  # which of them are accepted
    sampler: Sampler  # the distribution of the output
    seed: int | None = None  # seed of the noise; None: a new one for each answer
    grammar: Begin | None = None  # starts the grammar that an answer must match
    template: ChatTemplate | None = None  # turns text and messages into tokens
    free_cells: Callable[[], bool] = lambda: False  # those of others, where there are any

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
            learned: costs and calibrations to use and update; default: the pair's own.
            conversation: index of the caches to use, below the pair's number of conversations.
            schedule: makes the stopping rule.

        Raises a UsageError for a setting that these models cannot honour.
        """
        sampling, speculation = Sampling.given(sampling), Speculation.given(speculation)
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
            partial(_free_others, pair, conversation),
        )

    def answer(self, prompt: Prompt, limits: Limits | None = None) -> Answer:
        """All rounds of `generate`, put together."""
        answer = Answer()
        for round in self.generate(prompt, limits):
            answer.add(round)
        return answer

    def reset(self) -> None:
        """Empty both caches: the next prompt is read from the start."""
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
            prompt: a user's text, messages whose last one is the user's, or token ids. A prefix
                that is still in the caches is not read again.
            limits: where to stop; default: where the model stops or the context ends.
            draws: the randomness; default: the noise of `seed`.
            shift: called with the answer so far when the context is full.

        Yields:
            A round for each pass of the target, the last one with a ``finish_reason``. The first
            round is the prefill, and has the first token.

        Raises:
            UsageError: an empty prompt, invalid token ids, or a closed pair.
            ResourceError: a prompt that leaves no room for an answer.
        """
        ending = Ending(Limits.given(limits), self.tokenizer)
        prompt = self._ids(prompt)
        require_room(prompt, self.target.n_ctx)
        draws = Noise.of(self.seed) if draws is None else draws
        draws.move(len(prompt))
        run, said = self.start(prompt, ending, draws), list[int]()
        try:
            if not run.room:
                yield run.end("length")
            while run.finish_reason is None:
                try:
                    step = run.propose()
                    round = run.commit(self.target.decode(step.tokens, step.n_rows))
                except CacheFullError:
                    run.abandon()
                    if not self.free_cells():
                        raise
                    continue
                said += round.tokens
                if round.finish_reason != "context":
                    yield round
                elif shorter := shift(said) if shift else None:
                    # Yielded first, so that Ctrl-C while the rest is reread loses no token.
                    yield replace(round, finish_reason=None)
                    run = run.move(shorter)
                else:
                    yield replace(round, text=round.text + ending.flush())
        except Cancelled:
            yield run.end("cancelled")
        finally:
            self.stopping_rule.settle()

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if self.template is not None:
            return self.template.ids(prompt)
        if isinstance(prompt, str):
            problem = "this decoder has no chat template for text"
            raise UsageError(problem, "Give it token ids.")
        return cast(Sequence[int], prompt)

    def start(self, prompt: Sequence[int], ending: Ending | Endless, draws: Draws) -> Generation:
        """Start an answer whose passes the caller runs."""
        grammar = None if self.grammar is None else self.grammar()
        drafter = within(grammar, self.drafter, self.stopping_rule)
        verifier = DistVerifier(self.sampler, self.rule, draws, grammar)
        return Generation(self.target, drafter, self.stopping_rule, verifier, ending, prompt, draws)


def require_room(prompt: Sequence[int], n_ctx: int) -> None:
    """Raise an error for an empty prompt, or one that leaves no room for an answer."""
    if not prompt:
        raise UsageError("the prompt is empty", "Type some text.")
    if len(prompt) >= n_ctx:
        problem = f"a prompt of {len(prompt)} tokens leaves no room in a context of {n_ctx}"
        raise ResourceError(problem, "Shorten the prompt, or use a larger --ctx-size.")


def _free_others(pair: Pair, conversation: int) -> bool:
    """Free the cells of all conversations but this; False: they have none."""
    held = [each for each in pair.others(conversation) if each.length]
    for each in held:
        each.trim(0)
    return bool(held)
