"""A token from a row as ``Llama`` draws it: llama.cpp's sampler chain, asked for less."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.engine.grammar import Grammar, Ids, Pieces, apply, candidates
from dspark_gguf.engine.llama import row_of
from dspark_gguf.errors import UsageError

_NEUTRAL = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


class Chain:
    """The sampler chain of one answer.

    Where all but the most probable tokens that the grammar lets through cannot be drawn (greedy,
    or a top-k, without penalties, processors and mirostat), only those are shown to the chain.
    The tokens are the same.

    Args:
        llama: whose ``_init_sampler`` makes the chain.
        pieces: tokens as grammars read them.
        sampling: as for ``_init_sampler``.

    Attributes:
        grammar: what may follow the tokens drawn so far; None without a grammar, or where the
            chain keeps it for itself.

    """

    def __init__(self, llama: llama_cpp.Llama, pieces: Pieces | None, **sampling: Any) -> None:
        self._llama = llama
        self.grammar: Grammar | None = None
        asked = sampling.get("grammar")
        self._wanted = _kept(sampling)
        if asked is not None and pieces is not None:
            self.grammar = Grammar(llama._model.vocab, pieces, asked._grammar, asked._root)
        short = self.grammar is not None and self._wanted > 0
        self.sampler = llama._init_sampler(**{**sampling, "grammar": None if short else asked})
        self._short = short
        self._every = None if asked is None else np.arange(llama._n_vocab, dtype=np.int32)

    def draw(self, row: int) -> int:
        """The next token, from row `row` of the last pass, counted from its end: -1 is the last.

        Raises:
            UsageError: the grammar lets no token follow.

        """
        if self._every is None:
            return int(self.sampler.sample(self._llama._ctx, row))
        token = self._drawn(row, self._every)
        self.sampler.accept(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        return token

    def _drawn(self, row: int, every: Ids) -> int:
        logits = row_of(self._llama, row)
        ids = self._allowed(logits) if self._short else every
        array = candidates(ids, logits[ids])
        token = apply(self.sampler.sampler, array) if len(ids) else -1
        if token < 0:  # llama.cpp would end the process
            raise UsageError(
                "a grammar that lets some token follow", "one that lets none", "mend the grammar"
            )
        return token

    def _allowed(self, logits: npt.NDArray[np.float32]) -> Ids:
        """The most probable tokens that fit: as many as can be drawn, or all there are."""
        assert self.grammar is not None
        if self._wanted == 1:
            best = self.grammar.among(np.array([logits.argmax()], dtype=np.int32))
            if len(best):
                return best
        few = self.grammar.few()
        if len(few):
            return few
        first = 4 * max(self._wanted, 16)
        if first < len(logits):
            top = np.argpartition(logits, -first)[-first:].astype(np.int32)
            found = self.grammar.among(top)
            if len(found) >= self._wanted:
                return found
        return self.grammar.all()


def _kept(sampling: dict[str, Any]) -> int:
    """How many of the most probable tokens can be drawn; 0: all of them."""
    neutral = all(sampling.get(name, value) == value for name, value in _NEUTRAL.items())
    if not neutral or sampling.get("logits_processor") is not None:
        return 0
    temperature = sampling.get("temp", 0.8)
    if temperature == 0:
        return 1
    if temperature < 0 or sampling.get("mirostat_mode", 0):
        return 0
    return max(int(sampling.get("top_k", 40)), 0)
