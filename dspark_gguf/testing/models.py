"""Models that are tables, behind a cache that llama.cpp's rules are checked in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine.protocol import common_prefix
from dspark_gguf.errors import ResourceError
from dspark_gguf.sampling import Row

#: Logits float32 ``[n_vocab]`` of the token after a prefix of token ids.
RowOf = Callable[[tuple[int, ...]], Row]


class Misuse(AssertionError):  # noqa: N818 - reads as what happened
    """A call that llama.cpp would answer with garbage or a crash."""


class ByteTokenizer:
    """Every byte is a token, and one more token ends an answer."""

    n_vocab = 257
    end = 256
    end_tokens: Sequence[int] = (256,)

    def piece(self, token: int) -> bytes:
        """The byte; nothing for the end token."""
        return bytes([token]) if token != self.end else b""

    def tokenize(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`."""
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")


class TableModel:
    """A model that is a function from prefixes to rows, behind a strict cache.

    The vocabulary is as large as the rows are wide; the cache holds `n_ctx` tokens, and a pass has
    at most `max_rows` rows.
    """

    user: object = None

    def __init__(self, row_of: RowOf, n_ctx: int = 128, max_rows: int = MAX_DRAFT + 1) -> None:
        self.n_ctx, self.max_rows = n_ctx, max_rows
        self.n_vocab = len(row_of(()))
        self.tokens: list[int] = []  # the ids in the cache
        self.passes: list[int] = []  # tokens decoded, pass by pass; clear it to count from here on
        self.rows_read = 0
        self._row_of = row_of
        self._rows = _Rows(self, (), 0)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Drop what is not a prefix of `tokens`; returns the length of what stays."""
        self.trim(common_prefix(self.tokens, tokens))
        return self.length

    def trim(self, length: int) -> None:
        """Take back the tokens from position `length` on, if there are any."""
        if length < 0:
            raise Misuse(f"trim to {length} tokens")
        del self.tokens[length:]

    def decode(self, tokens: Sequence[int], n_rows: int) -> _Rows:
        """One pass over `tokens`: rows for the last `n_rows`, float32 ``[n_vocab]`` each.

        Raises:
            ResourceError: the cache is full.
            Misuse: no tokens, more rows than tokens or than `max_rows`, or an id outside the
                vocabulary.
        """
        if not len(tokens):
            raise Misuse("a pass over no tokens")
        if not 0 <= n_rows <= min(len(tokens), self.max_rows):
            raise Misuse(f"{n_rows} rows of {len(tokens)} tokens, at most {self.max_rows}")
        outside = [token for token in tokens if not 0 <= token < self.n_vocab]
        if outside:
            raise Misuse(f"tokens {outside} in a vocabulary of {self.n_vocab}")
        if self.length + len(tokens) > self.n_ctx:
            problem = f"{self.length + len(tokens)} tokens do not fit in a context of {self.n_ctx}"
            raise ResourceError(problem, "Raise n_ctx.")
        self._rows.spoil()
        self.tokens.extend(tokens)
        self.passes.append(len(tokens))
        self._rows = _Rows(self, tuple(self.tokens), n_rows)
        return self._rows


class _Rows:
    """Rows of one pass, computed when read; the next pass overwrites them as llama.cpp does."""

    def __init__(self, model: TableModel, tokens: tuple[int, ...], count: int) -> None:
        self._model, self._tokens, self._count = model, tokens, count
        self._lent: list[Row] = []
        self._spoiled = False

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Row:
        if self._spoiled:
            raise Misuse(f"row {k} of a pass that a newer one has overwritten")
        if not 0 <= k < self._count:
            raise IndexError(k)
        self._model.rows_read += 1
        prefix = self._tokens[: len(self._tokens) - self._count + k + 1]
        row = self._model._row_of(prefix).copy()
        self._lent.append(row)
        view = row.view()
        view.flags.writeable = False
        return view

    def spoil(self) -> None:
        """Turn what was read into NaN: a newer pass begins."""
        self._spoiled = True
        for row in self._lent:
            row.fill(np.nan)


def random_rows(n_vocab: int, seed: int = 0, spread: float = 3.0) -> RowOf:
    """Normal logits of standard deviation `spread`: each prefix has its own, fixed by `seed`."""

    @lru_cache(maxsize=10_000)
    def row_of(prefix: tuple[int, ...]) -> Row:
        return _normal(_rng_of(prefix, seed), n_vocab, spread)

    return row_of


def agreeing_rows(target: RowOf, agreement: float, seed: int = 1, spread: float = 3.0) -> RowOf:
    """Rows of a draft that equal the target's after a share `agreement` of all prefixes.

    Elsewhere they are independent, with another best token.
    """

    @lru_cache(maxsize=10_000)
    def row_of(prefix: tuple[int, ...]) -> Row:
        wanted, rng = target(prefix), _rng_of(prefix, seed)
        if rng.random() < agreement:
            return wanted
        row = _normal(rng, len(wanted), spread)
        best, taken = int(row.argmax()), int(wanted.argmax())
        if best == taken:
            other = (best + 1) % len(row)
            row[best], row[other] = row[other], row[best]
        return row

    return row_of


def reciting_rows(tokens: Sequence[int], n_vocab: int, end: int) -> RowOf:
    """Rows of a model that recites `tokens`, then `end`; after any other prefix comes token 0.

    All logits are 0 but one, which is 50.
    """
    text = tuple(tokens)

    def row_of(prefix: tuple[int, ...]) -> Row:
        row = np.zeros(n_vocab, dtype=np.float32)
        known = prefix == text[: len(prefix)]
        row[(*text, end)[len(prefix)] if known else 0] = 50.0
        return row

    return row_of


def _normal(rng: np.random.Generator, n_vocab: int, spread: float) -> Row:
    row: Row = (spread * rng.standard_normal(n_vocab)).astype(np.float32)
    return row


def _rng_of(prefix: tuple[int, ...], seed: int) -> np.random.Generator:
    name = np.array([seed, *prefix], dtype=np.int64).tobytes()
    return np.random.default_rng(int.from_bytes(blake2b(name, digest_size=8).digest(), "big"))
