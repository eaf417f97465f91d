"""The tokens of one answer, as ``Llama.generate`` yields them."""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from dspark_gguf.draft import AnswerGrammar, within
from dspark_gguf.ending import Endless
from dspark_gguf.engine.chain import Chain
from dspark_gguf.engine.grammar import Grammar
from dspark_gguf.errors import UsageError
from dspark_gguf.generation import Generation
from dspark_gguf.noise import Noise


def in_turn(
    llama: Any, tokens: Generator[int, Sequence[int] | None, None]
) -> Generator[int, Sequence[int] | None, None]:
    """The tokens of an answer; a UsageError if `llama` began another, or computes one right now."""
    turn, sent = None, None
    with closing(tokens):
        while True:
            with _alone(llama):
                if turn is None:
                    turn = llama._turn = object()
                elif llama._turn is not turn:
                    raise UsageError(
                        "this Llama began another answer before this one was finished",
                        "Finish or leave one first, or make a second Llama.",
                    )
                try:
                    token = tokens.send(sent)
                except StopIteration:
                    return
            sent = yield token


@contextmanager
def _alone(llama: Any) -> Iterator[None]:
    """Two threads in one context would end the process.

    If Ctrl-C comes before it is known that the lock was taken, its thread can take it again.
    """
    is_alone = False
    try:
        is_alone = llama._one_thread.acquire(blocking=False)
        if not is_alone:
            raise UsageError(
                "this Llama computes another answer right now",
                "Use it in one thread at a time, or make a second Llama.",
            )
        yield
    finally:
        if is_alone:
            llama._one_thread.release()


def answer(
    llama: Any, prompt: list[int], *, stopping_criteria: Any = None, **sampling: Any
) -> Generator[int, Sequence[int] | None, None]:
    """Tokens after `prompt`, as a ``Llama`` draws them; `llama` is the `DSparkLlama`."""

    def begin(tokens: list[int], drawn: Sequence[int] = ()) -> Generation:
        """The generation after `tokens`, whose chain has seen `drawn`."""
        llama._mirostat_mu = ctypes.c_float(2.0 * sampling.get("mirostat_tau", 5.0))
        asked, grammar, scheduler = sampling.get("grammar"), None, llama.stopping_rule
        if asked is not None:
            state = Grammar(llama._vocabulary, asked._grammar, asked._root)
            grammar = AnswerGrammar(state, llama._choices)
        drafter = within(grammar, llama.drafter, scheduler)
        record = llama._recorded.append if llama._recorded else None
        chain = Chain(llama, grammar, stopping_criteria, record, **sampling)
        llama._sampler = chain.sampler
        for token in drawn:
            chain.accept(token)
        # Its drafters guess the most probable token: there is nothing to draw.
        return Generation(llama._cache, drafter, scheduler, chain, Endless(), tokens, Noise(0))

    run = begin(prompt)
    first = len(prompt)
    while run.finish_reason is None:
        llama._committed = run.tokens
        step = run.propose()
        place = len(run.tokens)
        result = run.commit(llama._cache.decode(step.tokens, step.n_rows))
        llama.tally.add(result)
        for k, token in enumerate(result.tokens):
            # Between two tokens, the caller sees the answer so far.
            llama.n_tokens = place + k
            sent = yield token
            if llama.n_tokens != place + k:
                problem = "this Llama read or loaded something else while it answered"
                raise UsageError(problem, "Leave the answer first.")
            if not sent:
                continue
            drawn = run.tokens[first : place + k + 1]
            said = [*run.tokens[: place + k + 1], *sent]
            # Else the chain has drawn more tokens than the caller got.
            is_last = k + 1 == len(result.tokens)
            run = run.move(said) if is_last else begin(said, drawn)
            break
    if run.finish_reason == "stop":  # by a criterion, which is asked again: all was said
        llama.n_tokens = len(run.tokens)
