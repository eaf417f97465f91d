"""Record chains: the target's greedy text, and at each of its positions the draft's own guess."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dspark_gguf.calibration import log_odds
from dspark_gguf.config import MAX_DRAFT, Limits, Sampling, Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.draft import LookupDrafter
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.measure.chains import Chains, Copies
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.sampling import Row, margin, top_probability


def record(pair: Pair, prompt: Prompt, positions: int, depth: int) -> Chains:
    """The chains of one answer. A confidence head's own word stands for the top probability.

    Args:
        pair: a target, and a draft or none.
        prompt: what to answer, greedily.
        positions: most positions to record; an answer that ends earlier has fewer.
        depth: draft tokens of each chain; a block draft's are as many as its block has. Copies are
            recorded as far as they go.

    """
    cache = pair.draft_cache()
    tokens = pair.template.encode(prompt.messages)
    plain = Decoder.for_pair(pair, Sampling(temperature=0), Speculation(mode="off"))
    # The tokens after the last position say whether its chain survives.
    text = plain.answer(tokens, Limits(max_tokens=positions + depth)).tokens
    ended = len(text) < positions + depth
    prefixes = [[*tokens, *text[:t]] for t in range(min(positions, len(text)))]
    if cache is None:
        depth = 0
        chains = [_Chain([], []) for _ in prefixes]
    elif isinstance(cache, BlockDraftCache):
        depth = min(depth, cache.most_drafts)
        # Backwards: the target then only takes tokens back, and reads nothing twice.
        prefill(pair.target_cache, [*tokens, *text])
        chains = [
            _block_chain(pair.target_cache, cache, prefix, depth, pair.vocabulary.n_vocab)
            for prefix in reversed(prefixes)
        ][::-1]
    else:
        tracer = Tracer(cache, depth, pair.vocabulary.n_vocab)
        chains = [tracer.chain(prefix) for prefix in prefixes]
    survived = np.zeros((len(chains), depth), dtype=np.bool_)
    for t, chain in enumerate(chains):
        right = _common(chain.tokens, text[t:])
        survived[t, :right] = True
    assert ended or len(chains) == positions
    told = np.array([chain.scores for chain in chains], dtype=np.float32)
    told = told.reshape(len(chains), depth, 2)
    copies = copies_of(LookupDrafter(pair.vocabulary), prefixes, text)
    return Chains(prompt.domain, told[..., 0], survived, told[..., 1], copies)


def copies_of(
    lookup: LookupDrafter, prefixes: Sequence[Sequence[int]], text: Sequence[int]
) -> Copies:
    """What would be copied at each position, as far as the text is known."""
    scores = np.full((len(prefixes), MAX_DRAFT), np.nan, dtype=np.float32)
    survived = np.zeros(scores.shape, dtype=np.bool_)
    for t, prefix in enumerate(prefixes):
        guesses, told = lookup.guess(prefix, min(MAX_DRAFT, len(text) - t))
        scores[t, : len(told)] = told
        survived[t, : _common(guesses, text[t:])] = True
    return Copies(scores, survived)


def learn(pair: Pair, speculation: Speculation, texts: Sequence[Chains]) -> None:
    """Let the scheduler know what greedy texts say about this pair."""
    learned = pair.learned(speculation)
    meaning = learned.calibration(pair.draft_kind, "ratio", 0.0)
    of_copies = learned.calibration("lookup", "ratio", 0.0, is_free=True)
    for text in texts:
        for scores, right in text.copies or ():
            fates = [1.0] * right + [0.0] * (right < len(scores))
            of_copies.observe(scores[: len(fates)], fates)
        if text.gap is None:
            continue
        for gaps, alive in zip(text.gap.tolist(), text.survived.tolist(), strict=True):
            tested = min(sum(alive) + 1, len(alive))
            meaning.observe(gaps[:tested], [float(yes) for yes in alive[:tested]])


class _Chain:
    """Draft tokens after one position, and the scores of their rows."""

    def __init__(self, tokens: list[int], scores: list[tuple[float, float]]) -> None:
        self.tokens, self.scores = tokens, scores


class Tracer:
    """Greedy chains at one position after the other.

    Where the first guess was right, the next chain is this one but its first token, and only one
    more step is needed.
    """

    def __init__(self, cache: Cache, depth: int, n_vocab: int) -> None:
        self.cache, self.depth, self.n_vocab = cache, depth, n_vocab
        self._trail: list[int] = []
        self._scores: list[tuple[float, float]] = []

    def chain(self, tokens: Sequence[int]) -> _Chain:
        """The chain after `tokens`."""
        known = len(self._trail)
        if known < len(tokens) or self._trail[: len(tokens)] != list(tokens):
            self._trail, self._scores = list(tokens), []
        else:
            del self._scores[: len(self._scores) - (known - len(tokens))]
        self.cache.keep(self._trail[:-1])
        while len(self._scores) < self.depth:
            row = self.cache.decode(self._trail[self.cache.length :], 1)[0][: self.n_vocab]
            self._scores.append(scores(row))
            self._trail.append(int(row.argmax()))
        return _Chain(self._trail[len(tokens) :], list(self._scores))


def _block_chain(
    target: Cache, cache: BlockDraftCache, tokens: Sequence[int], depth: int, n_vocab: int
) -> _Chain:
    prefill(target, tokens[:-1])
    cache.repair()
    prefill(target, tokens[:-1])
    block = cache.propose(tokens[-1], cache.most_drafts)
    rows = [block.rows[k][:n_vocab] for k in range(depth)]
    guesses = [int(row.argmax()) for row in rows]
    if block.sure is None:
        return _Chain(guesses, [scores(row) for row in rows])
    return _Chain(guesses, [(sure, log_odds(sure)) for sure in block.sure[:depth]])


def scores(row: Row) -> tuple[float, float]:
    """Top probability of a row, and the gap between its two best logits."""
    return top_probability(row), margin(row)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    differs = (k for k, (one, other) in pairs if one != other)
    return next(differs, min(len(left), len(right)))
