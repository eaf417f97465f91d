"""llama.cpp's own sampler chain as a verifier: it draws the same tokens as ``Llama``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp
import numpy as np

from dspark_gguf.engine.grammar import apply, candidates
from dspark_gguf.engine.protocol import Rows
from dspark_gguf.errors import UsageError
from dspark_gguf.records import Draft, Verdict
from dspark_gguf.sampling import Follower, Row

_NEUTRAL = {"repeat_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


class Chain:
    """The sampler chain of one answer: draws a token from each row as long as the draft is right.

    With greedy or top-k sampling, and without penalties, logits processors and mirostat, only the
    k best tokens that the grammar allows can be drawn, so the chain is given only those. Between
    two tokens, `n_tokens` and `input_ids` of the ``Llama`` cover what is committed so far: a logits
    processor, a stopping criterion or the caller may read them.

    `sampling` has the arguments of ``_init_sampler``, and `follower` follows its grammar.
    `criteria` are llama-cpp-python's stopping criteria, called with (ids, logits): true ends the
    answer without the drawn token. `record` is called with each row that a token is drawn from.
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        follower: Follower | None,
        criteria: Callable[[Any, Any], bool] | None = None,
        record: Callable[[Row], None] | None = None,
        **sampling: Any,
    ) -> None:
        self._llama, self._follower = llama, follower
        self._criteria, self._record = criteria, record
        self._reach = _reach(sampling)
        self._is_short = follower is not None and self._reach > 0
        shown = {**sampling, "grammar": None} if self._is_short else sampling
        self.sampler = llama._init_sampler(**shown)
        self._every = np.arange(int(llama._n_vocab), dtype=np.int32)

    def draw(self, row: Row, place: int) -> int:
        """Draw the next token; `place` is the row's index in the last pass, -1 for the last row."""
        if self._follower is None:
            return int(self.sampler.sample(self._llama._ctx, place))
        ids = self._follower.best(row, self._reach) if self._is_short else self._every
        array = candidates(ids, row[ids])
        token = apply(self.sampler.sampler, array) if len(ids) else -1
        if token < 0:  # llama.cpp would end the process
            raise UsageError("the grammar allows no token here", "Correct the grammar.")
        self.sampler.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Continue after a token that another chain drew."""
        self.sampler.accept(token)
        if self._follower is not None:
            self._follower.follow(token, token)

    def __call__(self, draft: Draft, rows: Rows, tokens: Sequence[int]) -> Verdict:
        """See `Verifier`; the rule is always `match`."""
        llama, last = self._llama, tokens[-1]
        for k in range(len(draft) + 1):
            llama.n_tokens = len(tokens) + k
            if self._record is not None:
                self._record(rows[k])
            token = self.draw(rows[k], k - len(draft) - 1)
            if self._follower is not None:
                self._follower.follow(last, token)
            if self._criteria and self._criteria(llama._input_ids, llama._scores[-1, :]):
                return Verdict(k, None)
            if k == len(draft) or token != draft.tokens[k]:
                return Verdict(k, token)
            last = token
        raise AssertionError


def _reach(sampling: dict[str, Any]) -> int:
    """How many of the most probable tokens can be drawn; 0: all."""
    penalised = any(sampling.get(name, value) != value for name, value in _NEUTRAL.items())
    temperature = sampling.get("temp", 0.8)
    if penalised or temperature < 0 or sampling.get("logits_processor") is not None:
        return 0
    if temperature == 0:
        return 1
    return 0 if sampling.get("mirostat_mode") else max(int(sampling.get("top_k", 40)), 0)
