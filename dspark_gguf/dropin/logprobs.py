"""Log-probabilities of an answer without a table of logits for the whole context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dspark_gguf.engine.llama import SafeLlama
from dspark_gguf.errors import UsageError


class RecordedRows:
    """The rows that an answer's tokens were drawn from; row 0 is at position `first`."""

    def __init__(self, n_vocab: int, first: int) -> None:
        self._buffer = np.empty((16, n_vocab), dtype=np.float32)
        self._first, self._count = first, 0

    def append(self, row: npt.NDArray[np.float32]) -> None:
        """Copy one more."""
        if self._count == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self._count] = row
        self._count += 1

    @property
    def rows(self) -> OffsetRows:
        """All rows ``[n, n_vocab]``, indexed by position in the context."""
        rows = self._buffer[: self._count].view(OffsetRows)
        rows.first = self._first
        return rows


class OffsetRows(np.ndarray):
    """An array whose rows are numbered from `first`; so are the results of arithmetic on it."""

    first = 0

    def __array_finalize__(self, made_from: object) -> None:
        self.first = getattr(made_from, "first", 0)

    def __getitem__(self, key: Any) -> Any:
        of_row, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(of_row, slice):
            of_row = slice(max((of_row.start or 0) - self.first, 0), None)
        elif of_row >= 0:
            of_row -= self.first
        return self.view(np.ndarray)[(of_row, *rest)]


class LogprobsLlama(SafeLlama):
    """A ``Llama`` that records an answer's rows if `logprobs` are requested.

    Its `generate` calls `_begin_recording`, and appends each row to `_recorded`.
    """

    _recorded: RecordedRows | None = None
    _records = False
    _all_logits = False

    def _create_completion(self, *args: Any, **options: Any) -> Iterator[Any]:
        if options.get("logprobs") is None or self._logits_all or args:
            yield from super()._create_completion(*args, **options)
            return
        if options.get("echo"):
            raise UsageError(
                "log-probabilities of the prompt (echo) need logits_all=True",
                "Make the Llama with logits_all=True, or do not echo.",
            )
        answer = super()._create_completion(**options)
        # The answer reads `_logits_all` before `generate` begins, which resets this.
        self._records = True
        try:
            yield from answer
        finally:
            self._records, self._recorded = False, None

    def _begin_recording(self, first: int) -> None:
        """An answer begins; its first token is drawn from the row at position `first`."""
        self._recorded = RecordedRows(self._n_vocab, first) if self._records else None
        self._records = False

    @property
    def _scores(self) -> Any:
        return self._recorded.rows if self._recorded else super()._scores

    @property
    def _logits_all(self) -> bool:
        return self._records or self._all_logits

    @_logits_all.setter
    def _logits_all(self, value: bool) -> None:
        self._all_logits = value

    def save_state(self) -> Any:  # noqa: D102 - as in Llama
        # The state takes the table of logits along, not the recorded rows.
        recorded, self._recorded = self._recorded, None
        try:
            return super().save_state()
        finally:
            self._recorded = recorded
