"""The round loop on a ``Llama``: the counterpart of ``decoder.py``, with llama.cpp's own draws."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import Any, TypeAlias

from dspark_gguf.engine.chain import Chain
from dspark_gguf.engine.llama import Llama, LlamaCache, RecordedRows, row_of
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.speculator import Speculator

#: llama-cpp-python's: (token ids, logits) -> whether to end the answer.
StoppingCriteria: TypeAlias = Callable[[Any, Any], bool]


class LlamaDecoder:
    """One answer: drafts, verified by drawing each token from the target's row (`match`).

    Args:
        llama: the target; its books (`n_tokens`, `input_ids`) hold what was committed whenever a
            processor, a criterion or the caller sees them.
        cache: the same as a cache.
        speculator: what drafts; None: nothing does.
        recorded: where rows are kept for log-probabilities; None: nowhere.

    """

    def __init__(
        self,
        llama: Llama,
        cache: LlamaCache,
        speculator: Speculator | None,
        recorded: RecordedRows | None,
    ) -> None:
        self.llama, self.cache = llama, cache
        self.speculator, self.recorded = speculator, recorded

    def generate(
        self,
        tokens: list[int],
        *,
        reset: bool = True,
        stopping_criteria: StoppingCriteria | None = None,
        **sampling: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens behind `tokens`, as of ``Llama.generate``, whose arguments these are."""
        llama = self.llama
        chain = self._new_chain(sampling)
        if reset:
            self.cache.keep(tokens[:-1])
            tokens = tokens[llama.n_tokens :]
        said = [*llama._input_ids.tolist(), *tokens]
        if self.speculator:
            self.speculator.restart(said[:-1], chain.grammar)
        plain = True  # the prompt's pass
        while True:
            started = perf_counter()
            draft, learns = (NO_DRAFT, False) if plain else self._drafted(said, chain)
            drafted = perf_counter()
            before = llama.n_tokens + len(tokens)
            if len(draft):
                self.cache.decode([*tokens, *draft.tokens])
            else:
                llama.eval(tokens)
            decoded = perf_counter()
            last = said[-1]
            fresh, sent = yield from self._said(draft, before, last, chain, stopping_criteria)
            if sent is None:
                return
            if llama.n_tokens < before + len(draft):
                llama._ctx.kv_cache_seq_rm(-1, llama.n_tokens, -1)
                llama._requires_eval = True
            tokens = [fresh[-1], *sent]
            said += [*fresh, *sent]
            if self.speculator:
                self.speculator.trim(len(said) - 1 - len(sent))
                if not (plain or sent):
                    round = _round(draft, fresh, started, drafted, decoded)
                    self.speculator.observe(round, learns)
            plain = bool(sent)

    def _new_chain(self, sampling: dict[str, Any]) -> Chain:
        self.llama._mirostat_mu = ctypes.c_float(2.0 * sampling.get("mirostat_tau", 5.0))
        speculator = self.speculator
        pieces = speculator.pieces if speculator and sampling.get("grammar") else None
        chain = Chain(self.llama, pieces, **sampling)
        self.llama._sampler = chain.sampler
        return chain

    def _drafted(self, said: list[int], chain: Chain) -> tuple[Draft, bool]:
        """What to verify after `said`, and whether the round will teach anything."""
        if self.speculator is None:
            return NO_DRAFT, False
        room = min(self.cache.n_ctx - len(said), self.llama.n_batch) - 1
        return self.speculator.draft(said, room, chain.grammar)

    def _said(
        self,
        draft: Draft,
        before: int,
        last: int,
        chain: Chain,
        stopping_criteria: StoppingCriteria | None,
    ) -> Generator[int, Sequence[int] | None, tuple[list[int], Sequence[int] | None]]:
        """Draw a token from each row of the last pass, as long as the draft was right.

        Args:
            draft: what stands at the end of the pass.
            before: tokens in the context without the draft.
            last: the token before the first one.
            chain: what draws.
            stopping_criteria: of the caller.

        Returns:
            The tokens, and what the caller sent behind the last one; None to end the answer.

        """
        rows, fresh = len(draft) + 1, list[int]()
        sent: Sequence[int] | None = None
        for k in range(rows):
            # What a processor or a caller sees between two tokens: what was committed.
            self.llama.n_tokens = before + k
            if self.recorded:
                self.recorded.append(row_of(self.llama, k - rows))
            few = chain.grammar.few() if chain.grammar else None
            token = chain.draw(k - rows)
            if self.speculator and few is not None:
                self.speculator.choices.observe(fresh[-1] if fresh else last, few, token)
            if stopping_criteria is not None and stopping_criteria(
                self.llama._input_ids, self.llama._scores[-1, :]
            ):
                return fresh, None
            fresh.append(token)
            sent = yield token
            if sent or k == len(draft) or token != draft.tokens[k]:
                break
        return fresh, sent or ()


def _round(
    draft: Draft, fresh: Sequence[int], started: float, drafted: float, decoded: float
) -> Round:
    """The record of a round that the speculator learns from; times in seconds of one clock."""
    pairs = enumerate(zip(draft.tokens, fresh, strict=False))
    accepted = next((k for k, (ours, theirs) in pairs if ours != theirs), len(draft))
    return Round.of(
        draft,
        fresh,
        accepted=accepted,
        seconds=decoded - started,
        draft_seconds=drafted - started,
        target_seconds=decoded - drafted,
    )
