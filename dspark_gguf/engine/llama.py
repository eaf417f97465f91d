"""A loaded ``llama_cpp.Llama`` as a cache: the state that its own methods keep stays true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama as Llama  # for those above, which do not know llama_cpp

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine import trial
from dspark_gguf.engine.rollback import is_still_seen
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import ResourceError

#: Tokens from which on a list is remembered by `GrowingTokenizer`.
_LONG = 32


class SafeLlama(Llama):  # type: ignore[misc]
    """A ``Llama`` that is loaded with extra buffers only where they work (``trial.py``).

    ``Llama`` has no argument for it; what it sets is the attribute `model_params`, once, before
    the model is loaded. A contract test pins that.

    Args:
        model_path: as for ``Llama``.
        extra_buffers: auto, on or off.
        options: as for ``Llama``.

    Raises:
        EngineError: this build of llama.cpp cannot run on this machine.

    """

    def __init__(
        self, model_path: str, *, extra_buffers: trial.Wish = "auto", **options: Any
    ) -> None:
        self._wish, self.extra_buffers = extra_buffers, trial.extra_buffers(extra_buffers)
        super().__init__(model_path, **options)

    @property
    def model_params(self) -> Any:
        """How the model was loaded."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        params.use_extra_bufts = self.extra_buffers
        self._model_params = params

    def __getstate__(self) -> dict[str, Any]:
        """What makes the same again, for pickling."""
        return {**super().__getstate__(), "extra_buffers": self._wish}


class LlamaCache:
    """The cache of a ``Llama``, in its own books (`n_tokens`, `input_ids`).

    Relies on ``_ctx``, ``_batch``, ``_n_vocab``, ``_logits_all``, ``_requires_eval`` and
    ``_model``; a contract test pins them.

    Args:
        llama: who else may use it between two calls.

    """

    def __init__(self, llama: Llama) -> None:
        self.llama = llama
        self.vocabulary = Vocabulary(llama._model.model, owner=llama)
        self._window = int(llama_cpp.llama_model_n_swa(llama._model.model))

    @property
    def n_ctx(self) -> int:
        """Most tokens it can hold: llama.cpp rounds up what the books of a ``Llama`` do not."""
        return min(int(self.llama.n_ctx()), len(self.llama.input_ids))

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return int(self.llama._n_vocab)

    @property
    def max_rows(self) -> int:
        """Most rows of a pass."""
        return min(MAX_DRAFT + 1, int(self.llama.n_batch))

    @property
    def length(self) -> int:
        """Tokens it holds."""
        return int(self.llama.n_tokens)

    @property
    def can_trim(self) -> bool:
        """Whether it takes back single tokens."""
        model = self.llama._model.model
        stateful = (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid)
        return not any(is_kind(model) for is_kind in stateful)

    def restart(self, tokens: Sequence[int]) -> int:
        """Hold exactly `tokens`; returns how many were there already."""
        kept = self.keep(tokens)
        self.advance(tokens[kept:], 0)
        return kept

    def keep(self, tokens: Sequence[int]) -> int:
        """Drop what is no prefix of `tokens`; returns the length of what stays."""
        ours = self.llama.input_ids[: min(self.length, len(tokens))]
        differs = np.flatnonzero(ours != np.asarray(tokens[: len(ours)], dtype=ours.dtype))
        self.trim(int(differs[0]) if len(differs) else len(ours))
        return self.length

    def trim(self, length: int) -> None:
        """Take back all tokens from position `length` on."""
        if length < self.length:
            context = self.llama._ctx
            memory = llama_cpp.llama_get_memory(context.ctx)
            seen = is_still_seen(memory, self._window, length)
            # Before the memory, as an exception may strike between: a pass removes what is behind.
            self.llama.n_tokens = length if seen else 0
            self.llama._requires_eval = True
            if not (seen and context.kv_cache_seq_rm(-1, length, -1)):
                self.llama.reset()

    def decode(self, tokens: Sequence[int]) -> LlamaRows:
        """One pass over `tokens`: a row for each."""
        return self.advance(tokens, len(tokens))

    def advance(self, tokens: Sequence[int], n_rows: int) -> LlamaRows:
        """Read tokens: all of their rows, or none but the last one's.

        Raises:
            ResourceError: the context is full.

        """
        llama = self.llama
        if self.length + len(tokens) > self.n_ctx:
            raise ResourceError(
                f"room for {self.length + len(tokens)} tokens",
                f"a context of {self.n_ctx}",
                "make the Llama with a larger n_ctx",
            )
        if not tokens:
            return LlamaRows(llama, 0)
        if n_rows <= 1:
            llama.eval(list(tokens))
            return LlamaRows(llama, n_rows)
        if llama._logits_all:
            llama.eval(list(tokens))
        else:
            self._pass(tokens)
        return LlamaRows(llama, len(tokens))

    def _pass(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval`` with all rows, but without its table of them."""
        llama, past = self.llama, self.length
        llama._ctx.kv_cache_seq_rm(-1, past, -1)
        llama._batch.set_batch(batch=tokens, n_past=past, logits_all=True)
        llama._ctx.decode(llama._batch)
        llama.input_ids[past : past + len(tokens)] = tokens
        llama.n_tokens = past + len(tokens)
        llama._requires_eval = False


class LlamaRows:
    """Logits of the last pass; views, valid until the next one."""

    def __init__(self, llama: Llama, count: int) -> None:
        self._llama, self._count = llama, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> npt.NDArray[np.float32]:
        if not 0 <= k < self._count:
            raise IndexError(k)
        return row_of(self._llama, k - self._count)


def row_of(llama: Llama, k: int) -> npt.NDArray[np.float32]:
    """A row of the last pass, counted from its end: a view, valid until the next one."""
    pointer = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, k)
    return np.ctypeslib.as_array(pointer, (llama._n_vocab,))


class RecordedRows:
    """The rows that an answer's tokens were drawn from, for logprobs: no table of the context.

    Args:
        n_vocab: length of a row.
        first: position that the first row stands for.

    """

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
    def rows(self) -> FromFirst:
        """All of them ``[n, n_vocab]``, indexed by position in the context."""
        rows = self._buffer[: self._count].view(FromFirst)
        rows.first = self._first
        return rows


class FromFirst(np.ndarray):
    """An array whose first row has the index `first`; so have the results of its arithmetic."""

    first = 0

    def __array_finalize__(self, made_from: object) -> None:
        self.first = getattr(made_from, "first", 0)

    def __getitem__(self, key: Any) -> Any:
        of_row, *rest = key if isinstance(key, tuple) else (key,)
        plain = self.view(np.ndarray)
        if isinstance(of_row, slice):
            return plain[(slice(max((of_row.start or 0) - self.first, 0), None), *rest)]
        if isinstance(of_row, int | np.integer) and of_row >= 0:
            of_row -= self.first
        return plain[(of_row, *rest)]


class GrowingTokenizer(llama_cpp.LlamaTokenizer):  # type: ignore[misc]
    """Detokenizes a list that grows by reading only what is new.

    ``Llama.create_completion`` asks for the text of the whole answer after every token, which
    makes long answers quadratic. What comes out is the same, byte for byte.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__(llama)
        self._pieces: dict[int, bytes] = {}
        self._tokens: list[int] = []
        self._known = 0, b""  # how many of them were read, and their text

    def detokenize(
        self,
        tokens: Iterable[int],
        prev_tokens: list[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """The bytes of `tokens`."""
        if not isinstance(tokens, list):  # a stopping criterion is given an array
            tokens = [int(token) for token in tokens]
        if special or not tokens:
            return bytes(self._model.detokenize(tokens, special=special))
        known, text = self._known
        del self._tokens[known:]  # where an exception struck before they were known
        if known == 0 or tokens[:known] != self._tokens:
            if len(tokens) < _LONG:  # a short list; the long one will be asked for again
                return self._without_space(tokens, self._text_of(tokens, b""))
            known, text = self._known = 0, b""
            self._tokens = []
        fresh = tokens[known:]
        text = self._text_of(fresh, text)
        self._tokens += fresh
        self._known = len(tokens), text
        return self._without_space(tokens, text)

    def _text_of(self, tokens: Sequence[int], before: bytes) -> bytes:
        pieces = self._pieces
        for token in tokens:
            if token not in pieces:
                pieces[token] = self._model.detokenize([token])
        return before + b"".join([pieces[token] for token in tokens])

    def _without_space(self, tokens: Sequence[int], text: bytes) -> bytes:
        """Llama 1 begins a text with a space after its first token."""
        begins = tokens[0] == self._model.token_bos() and text[:1] == b" "
        return text[1:] if begins else text
