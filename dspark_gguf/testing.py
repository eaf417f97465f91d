"""Fakes to test a drafter, a stopping rule or an acceptance rule.

They need no model and no llama.cpp, and are exact::

    tokenizer = ByteTokenizer()
    rows = random_rows(tokenizer.n_vocab, seed=1)
    target, draft = TableModel(rows), TableModel(agreeing_rows(rows, agreement=0.7, seed=2))

``TableModel`` computes each row from the whole prefix in its cache, so one wrong token there shows
in the answer. ``law_of`` computes the distribution of a function's results without sampling, by
walking every path that its draws can take: it shows whether a rule is lossless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.errors import ResourceError
from dspark_gguf.sampling import Row

#: Logits float32 ``[n_vocab]`` of the token after a prefix of token ids.
RowOf = Callable[[tuple[int, ...]], Row]

T = TypeVar("T")


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

    Args:
        row_of: the function; the width of its rows is the size of the vocabulary.
        n_ctx: most tokens the cache holds.
        max_rows: most rows of a pass.

    Attributes:
        tokens: the ids in the cache, in order.
        passes: tokens decoded, pass by pass. Clear it to count from here on.
        rows_read: rows that were read.

    """

    def __init__(self, row_of: RowOf, n_ctx: int = 128, max_rows: int = MAX_DRAFT + 1) -> None:
        self.n_ctx, self.max_rows = n_ctx, max_rows
        self.n_vocab = len(row_of(()))
        self.tokens: list[int] = []
        self.passes: list[int] = []
        self.rows_read = 0
        self._row_of = row_of
        self._rows = _Rows(self, (), 0)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    def keep(self, tokens: Sequence[int]) -> int:
        """Drop what is not a prefix of `tokens`; returns the length of what stays."""
        same = (mine == wanted for mine, wanted in zip(self.tokens, tokens, strict=False))
        self.trim(sum(takewhile(bool, same)))
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


def law_of(run: Callable[[Any], T]) -> dict[T, Fraction]:
    """Probability of every result of `run`, a function of a random generator.

    `run` is called once for each path that its draws can take. It may call ``random()``, compare
    the result with numbers, multiply it by one, or pass it to ``numpy.searchsorted``; and
    ``spawn``, whose children share the path. The probabilities are exact for the floats that the
    draws are compared with.
    """
    law: dict[T, Fraction] = {}
    paths: list[list[bool]] = [[]]
    while paths:
        walk = _Walk(paths.pop())
        result = run(walk)
        law[result] = law.get(result, Fraction(0)) + walk.probability
        paths += walk.others
    return law


class _Walk:
    """A generator whose draws are split only where they are compared.

    Args:
        path: how the first comparisons turn out; after them, the lower side first.

    """

    def __init__(self, path: list[bool]) -> None:
        self.path, self.others = path, list[list[bool]]()
        self.probability = Fraction(1)
        self._steps = 0

    def random(self) -> _Draw:
        """A number that is only known to lie in [0, 1)."""
        return _Draw(self)

    def spawn(self, count: int) -> list[_Walk]:
        """Generators that go on with this path."""
        return [self] * count

    def turn(self) -> bool:
        """The outcome of an open comparison; the other outcome gets a walk of its own."""
        if self._steps == len(self.path):
            self.others.append([*self.path, False])
            self.path.append(True)
        self._steps += 1
        return self.path[self._steps - 1]


class _Draw:
    """A uniform number, narrowed down by comparisons, times `scale`."""

    def __init__(self, walk: _Walk) -> None:
        self._walk, self._scale = walk, Fraction(1)
        self._low, self._high = Fraction(0), Fraction(1)

    def __mul__(self, scale: float) -> _Draw:
        self._scale *= Fraction(float(scale))
        return self

    __rmul__ = __mul__

    def __lt__(self, other: Any) -> bool:
        if other is self:
            return False
        bound = Fraction(float(other)) / self._scale
        if not self._low < bound < self._high:
            return self._low < bound
        below, width = self._walk.turn(), self._high - self._low
        self._low, self._high = (self._low, bound) if below else (bound, self._high)
        self._walk.probability *= (self._high - self._low) / width
        return below

    def __gt__(self, other: Any) -> bool:
        return other is not self and not self < other
