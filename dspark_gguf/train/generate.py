"""The target writes conversations, many sequences in one pass."""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter

from dspark_gguf.admission import Request
from dspark_gguf.batching import Batcher
from dspark_gguf.config import Limits, ModelOptions, Sampling, Speculation
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Pass
from dspark_gguf.engine.sequence import decode_together
from dspark_gguf.errors import ResourceError, UsageError
from dspark_gguf.train.prompts import Question, Source
from dspark_gguf.train.work import Conversation, Work

#: Sequences in a pass, and the tokens of each, prompt and answer. More sequences would not help on
#: a CPU: they share a KV cache, and the attention of each row goes over all of it.
SEQUENCES, LENGTH = 16, 448
#: Most tokens of an answer, and of a user's turn that the target writes.
_ANSWER, _TURN = 200, 70
#: Shortest answer worth keeping.
_LEAST = 4
#: Prompts in a row that are empty or too long.
_MAX_REFUSED = 2000
_PLAIN = Speculation(mode="off")


def for_generating(options: ModelOptions) -> ModelOptions:
    """The target's options with room for all sequences; a `UsageError` if one does not fit."""
    if 0 < options.n_ctx < LENGTH:
        problem = f"a context of {options.n_ctx} has no room for conversations of {LENGTH} tokens"
        raise UsageError(problem, "Use a larger --ctx-size, or leave it out.")
    return options.model_copy(update={"n_ctx": options.n_ctx or SEQUENCES * LENGTH})


def longest_prompt(pair: Pair) -> int:
    """Tokens of the longest prompt that leaves room for an answer."""
    room = min(LENGTH, pair.target_cache.n_ctx)
    return room - min(_ANSWER, room // 2)


def generate(pair: Pair, work: Work, source: Source, seed: int) -> Generator[int, None, None]:
    """Generate without end; yields, after each pass, the number of conversations kept.

    Answers that are unfinished when the caller closes it, or when it fails, are kept as they are.
    """
    batcher = Batcher(pair, _PLAIN)
    room = min(LENGTH, pair.target_cache.n_ctx)
    longest, turn = longest_prompt(pair), min(_TURN, room // 8)
    answer = room - longest
    number, refused = len(work.conversations), 0
    live: list[Request] = []

    def submit(asked: Question | None) -> None:
        """Ask the target, unless there is no room for the answer."""
        nonlocal number, refused
        if asked is None or len(asked.tokens) > longest:
            refused += 1
            if refused > _MAX_REFUSED:
                problem = "the prompts are empty, or leave no room for answers"
                raise ResourceError(f"{problem} in {room} tokens", "Give other --prompts.")
            return
        number, refused = number + 1, 0
        sampling = Sampling(temperature=asked.temperature, seed=seed + number)
        if asked.begun:  # nothing is filtered, for variety
            sampling = sampling.model_copy(update={"top_k": 0, "top_p": 1.0})
        limits = Limits(max_tokens=turn if asked.begun else answer)
        live.append(batcher.submit(asked.tokens, sampling, limits, key=asked))

    try:
        while True:
            while len(live) < batcher.parallel:
                submit(source.next())
            batcher.step()
            over, live = [r for r in live if r.is_over], [r for r in live if not r.is_over]
            for request in over:
                if request.error is not None:
                    raise request.error
                then = source.heard(request.answer.text, request.key)
                if request.key.begun:
                    submit(then)
                elif conversation := _kept(request, pair):
                    work.add(conversation)
            yield len(work.conversations)
    finally:
        for request in live:
            if not request.key.begun and (conversation := _kept(request, pair)):
                work.add(conversation)


def _kept(request: Request, pair: Pair) -> Conversation | None:
    """An answer without its end token; None if it is too short."""
    asked: Question = request.key
    answer = list(request.answer.tokens)
    if answer and answer[-1] in pair.vocabulary.end_tokens:
        answer.pop()
    if len(answer) < _LEAST:
        return None
    prompt = list(request.prompt)
    return Conversation(prompt, answer, asked.temperature, asked.start, asked.held)


def seconds_a_token(pair: Pair, passes: int = 3) -> float:
    """Seconds per generated token: passes with a token of every sequence, caches partly full."""
    caches, best = pair.target_caches, float("inf")
    filled = min(caches[0].n_ctx // len(caches), LENGTH) // 4  # they may share a context
    for k, cache in enumerate(caches):
        cache.decode([100 + (k + j) % 100 for j in range(filled)], 0)
    for k in range(passes):
        started = perf_counter()
        decode_together([Pass(cache, [100 + 7 * k], 1) for cache in caches])
        best = min(best, perf_counter() - started)
    for cache in caches:
        cache.trim(0)
    return best / len(caches)
