"""Record chains: a greedy text of the target, and the draft's guesses at each position of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from dspark_gguf.calibration import log_odds
from dspark_gguf.chat.progress import uninterrupted
from dspark_gguf.config import MAX_DRAFT, Limits, Sampling, Speculation, option_names
from dspark_gguf.decoder import Decoder
from dspark_gguf.draft import LookupDrafter
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.measure.chains import Chains, Guesses
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.sampling import Row, margin, top_probability

#: The answer takes about this share of the time, the draft's guesses the rest.
_ANSWER = 0.3
#: Draft tokens after one position, and the scores of their rows.
Chain = tuple[list[int], list[tuple[float, float]]]


def record(
    pair: Pair,
    prompt: Prompt,
    positions: int,
    depth: int,
    show: Callable[[float], object] = lambda share: None,
) -> Chains:
    """The chains of one greedy answer: `depth` draft tokens at each of its first `positions`.

    A block draft has at most as many tokens as its block, and a confidence head's own value
    replaces the top probability. Copies are recorded as far as they go. `show` is called with the
    share that is done.

    Raises:
        UsageError: a draft with other token ids.
        ResourceError: a text that the draft's context cannot hold.
        Cancelled: the user asks to stop.

    """
    cache = pair.draft_cache()
    if not has_chains(cache):
        problem = "a draft with another tokenizer has no chains of the target's tokens to record"
        raise UsageError(problem, "Measure it with `dspark-gguf bench`.")
    n_vocab = pair.vocabulary.n_vocab
    tokens = pair.template.encode(prompt.messages)
    plain = Decoder.for_pair(pair, Sampling(temperature=0), Speculation(mode="off"))
    # The tokens after the last position say whether its chain survives.
    text = plain.answer(tokens, Limits(max_tokens=positions + depth)).tokens
    if pair.interrupt.is_set():
        raise Cancelled
    show(_ANSWER)

    def watched(prefixes: Iterable[list[int]]) -> Iterator[list[int]]:
        for k, each in enumerate(uninterrupted(prefixes, pair.interrupt), 1):
            yield each
            show(_ANSWER + (1.0 - _ANSWER) * k / len(text))

    prefixes = [[*tokens, *text[:t]] for t in range(min(positions, len(text)))]
    chains: list[Chain]
    if cache is None:
        depth = 0
        chains = [([], [])] * len(prefixes)
    elif isinstance(cache, Follower):
        depth = min(depth, cache.max_drafts)
        # Backwards: the target then only takes tokens back, and reads nothing twice.
        target = pair.target_cache
        prefill(target, [*tokens, *text])
        ends = watched(reversed(prefixes))
        chains = [_followed_chain(target, cache, one, depth, n_vocab) for one in ends]
        chains.reverse()
    else:
        # The last position is read with all of its guesses but one.
        _require_room(cache, len(tokens) + len(prefixes) + depth - 2)
        tracer = Tracer(cache, depth, n_vocab)
        chains = [tracer.chain(each) for each in watched(prefixes)]
    survived = np.zeros((len(chains), depth), dtype=np.bool_)
    for t, (drafted, _) in enumerate(chains):
        _mark_right(survived[t], drafted, text[t:])
    found = np.array([scores for _, scores in chains], dtype=np.float32)
    found = found.reshape(len(chains), depth, 2)
    guesses = lookup_guesses(LookupDrafter(pair.vocabulary), prefixes, text)
    return Chains(prompt.domain, found[..., 0], survived, found[..., 1], guesses)


def record_fitting(
    pair: Pair,
    prompts: Sequence[Prompt],
    left_out: list[str],
    show: Callable[[float], object] = lambda done: None,
    **each: int,
) -> Iterator[Chains]:
    """The chains of each prompt, as `record` with `each`; `show` gets how many are done.

    `left_out` gets a line for each that a context cannot hold; a `ResourceError` if none fits.
    """
    fitted = 0
    for done, prompt in enumerate(prompts):
        try:
            now = partial(lambda done, share: show(done + share), done)
            text = record(pair, prompt, **each, show=now)
        except ResourceError as error:
            if done == len(prompts) - 1 and not fitted:
                raise
            left_out.append(f"text {done + 1}: {error}")
        else:
            fitted += 1
            yield text
        show(done + 1)


def _require_room(cache: Cache, tokens: int) -> None:
    if tokens > cache.n_ctx:
        raise ResourceError(
            f"a text takes {tokens} tokens, the draft's context has {cache.n_ctx}",
            f"Use a larger {option_names('n_ctx', 'draft_options')[-1]}.",
        )


def has_chains(cache: Cache | None) -> bool:
    """Whether a draft guesses the target's own tokens; true without a draft."""
    return getattr(cache, "kind", "") not in ("foreign", "mapped")


def lookup_guesses(
    lookup: LookupDrafter, prefixes: Sequence[Sequence[int]], text: Sequence[int]
) -> Guesses:
    """What prompt lookup would copy at each position, as far as the text goes."""
    scores = np.full((len(prefixes), MAX_DRAFT), np.nan, dtype=np.float32)
    survived = np.zeros(scores.shape, dtype=np.bool_)
    for t, prefix in enumerate(prefixes):
        guesses, predicted = lookup.guess(prefix, min(MAX_DRAFT, len(text) - t))
        scores[t, : len(predicted)] = predicted
        _mark_right(survived[t], guesses, text[t:])
    return Guesses(scores, survived)


def _mark_right(row: npt.NDArray[np.bool_], guesses: Sequence[int], text: Sequence[int]) -> None:
    n = min(len(guesses), len(text))
    row[:n] = np.logical_and.accumulate(np.equal(guesses[:n], text[:n]))


def learn(pair: Pair, speculation: Speculation, texts: Sequence[Chains]) -> None:
    """Add what these greedy texts show to what the scheduler knows of the pair."""
    learned, draft = pair.learned(speculation), pair.draft_cache()
    of_draft = learned.calibration("" if draft is None else draft.kind, "match", 0.0)
    lookup = learned.calibration("lookup", "match", 0.0, is_free=True)
    for text in texts:
        steps = None if text.gap is None else Guesses(text.gap, text.survived)
        for calibration, guesses in ((lookup, text.lookup), (of_draft, steps)):
            for scores, right in guesses.rows if guesses else ():
                outcomes = [1.0] * right + [0.0] * (right < len(scores))
                calibration.observe(scores[: len(outcomes)], outcomes)


class Tracer:
    """Greedy chains at one position after another.

    If the first guess was right, the next chain is this one without its first token, and needs only
    one more step.
    """

    def __init__(self, cache: Cache, depth: int, n_vocab: int) -> None:
        self.cache, self.depth, self.n_vocab = cache, depth, n_vocab
        self._tokens: list[int] = []
        self._scores: list[tuple[float, float]] = []

    def chain(self, tokens: Sequence[int]) -> Chain:
        """The chain after `tokens`."""
        if self._tokens[: len(tokens)] == list(tokens):
            left = len(self._tokens) - len(tokens)
            del self._scores[: len(self._scores) - left]
        else:
            self._tokens, self._scores = list(tokens), []
        self.cache.reuse_prefix(self._tokens[:-1])
        while len(self._scores) < self.depth:
            row = self.cache.decode(self._tokens[self.cache.length :], 1)[0][: self.n_vocab]
            self._scores.append(_scores(row))
            self._tokens.append(int(row.argmax()))
        return self._tokens[len(tokens) :], list(self._scores)


def _followed_chain(
    target: Cache, cache: Follower, tokens: Sequence[int], depth: int, n_vocab: int
) -> Chain:
    cache.begin(tokens[:-1])
    prefill(target, tokens[:-1])
    # A whole block costs nearly as much as a part of it; other drafts pay for each guess.
    block = cache.propose(tokens[-1], cache.max_drafts if cache.kind == "block" else depth)
    rows = [block.rows[k][:n_vocab] for k in range(depth)]
    guesses = [int(row.argmax()) for row in rows]
    if block.confidence is None:
        return guesses, [_scores(row) for row in rows]
    return guesses, [(value, log_odds(value)) for value in block.confidence[:depth]]


def _scores(row: Row) -> tuple[float, float]:
    """The top probability, and the gap between the two best logits."""
    return top_probability(row), margin(row)
