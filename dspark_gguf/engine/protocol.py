"""What decoding needs of a model: the engine and the fakes of ``testing`` both provide it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt


class Rows(Protocol):
    """Logits of one pass, float32 ``[n_vocab]`` a row, valid until the next pass."""

    def __getitem__(self, k: int, /) -> npt.NDArray[np.float32]: ...

    def __len__(self) -> int: ...


class Cache(Protocol):
    """The KV cache of one sequence of tokens.

    `user` is a mark of the answer that used it last.
    """

    user: object

    @property
    def n_ctx(self) -> int:
        """Most tokens it can hold."""

    @property
    def n_vocab(self) -> int:
        """Size of its model's vocabulary: the width of a row of logits."""

    @property
    def max_rows(self) -> int:
        """Most rows of a pass; all but one of its tokens can be taken back."""

    @property
    def length(self) -> int:
        """Tokens it holds now."""

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Drop what is not a prefix of `tokens`; returns the length of what stays."""

    def decode(self, tokens: Sequence[int], n_rows: int) -> Rows:
        """Read tokens that follow those it holds; logits for the last `n_rows` of them."""

    def trim(self, length: int) -> None:
        """Take back the tokens from position `length` on, if there are any.

        Some memories drop more; the new length says what must be read again.
        """


class Pass(NamedTuple):
    """What a cache must decode: `tokens` after those it holds, rows for the last `n_rows`."""

    cache: Cache
    tokens: Sequence[int]
    n_rows: int


T = TypeVar("T")
#: Work that asks for passes, and goes on with their rows. So several can share each pass.
Passes: TypeAlias = Generator[Pass, Rows, T]


def run_alone(work: Passes[T]) -> T:
    """Do the work, one pass at a time."""
    try:
        wanted = next(work)
        while True:
            wanted = work.send(wanted.cache.decode(wanted.tokens, wanted.n_rows))
    except StopIteration as done:
        result: T = done.value
        return result


def prefill(cache: Cache, tokens: Sequence[int]) -> int:
    """Make `cache` hold exactly `tokens`, and return how many of them it already held."""
    kept = cache.reuse_prefix(tokens)
    if kept < len(tokens):
        cache.decode(tokens[kept:], 0)
    return kept


class Listener(Protocol):
    """Is told what a cache reads, such as a draft that works on the target's features."""

    def on_pass(self, count: int, first: int) -> None:
        """The cache has read `count` more tokens, from place `first` in the batch on.

        The results of the pass are still there.
        """

    def on_trim(self, length: int) -> None:
        """All tokens from position `length` on are void, and the cache may have dropped more."""


@dataclass(frozen=True, slots=True)
class Block:
    """The guesses of one pass of a block draft: logits and, with a confidence head, confidence."""

    rows: Rows
    confidence: Sequence[float] | None = None

    def __getitem__(self, k: int, /) -> npt.NDArray[np.float32]:
        return self.rows[k]

    def __len__(self) -> int:
        return len(self.rows)

    def copy(self) -> Block:
        """The same, valid for good."""
        return Block([np.array(self.rows[k]) for k in range(len(self))], self.confidence)


class Tokenizer(Protocol):
    """Tokens and text."""

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""

    @property
    def end_tokens(self) -> Sequence[int]:
        """Ids that end an answer."""

    def piece(self, token: int) -> bytes:
        """Bytes of a token; empty for a control token."""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two token lists."""
    length = min(len(left), len(right))
    differs = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(differs.argmax()) if differs.any() else length
