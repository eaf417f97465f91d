"""The protocols that decoding needs; the engine and the fakes of ``testing`` implement them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt


class Rows(Protocol):
    """Logits of one pass, each row float32 ``[n_vocab]``, valid until the next pass."""

    def __getitem__(self, k: int, /) -> npt.NDArray[np.float32]: ...

    def __len__(self) -> int: ...


class Cache(Protocol):
    """The KV cache of one sequence of tokens.

    `user` identifies the answer that used it last.
    """

    user: object

    @property
    def n_ctx(self) -> int:
        """Maximum tokens it can hold."""

    @property
    def n_vocab(self) -> int:
        """Size of the model's vocabulary: the width of a row of logits."""

    @property
    def max_rows(self) -> int:
        """Maximum rows of a pass, all but one of which can be rolled back."""

    @property
    def length(self) -> int:
        """Number of tokens in it."""

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Truncate to the longest common prefix with `tokens`; returns the new length."""

    def decode(self, tokens: Sequence[int], n_rows: int) -> Rows:
        """Append tokens; returns logits for the last `n_rows` of them."""

    def trim(self, length: int) -> None:
        """Drop the tokens from position `length` on, if there are any.

        Some kinds of memory drop more; the new length shows what must be read again.
        """


class Pass(NamedTuple):
    """A pass to run: append `tokens` to a cache, with logits for the last `n_rows`."""

    cache: Cache
    tokens: Sequence[int]
    n_rows: int


T = TypeVar("T")
TokenIds: TypeAlias = Sequence[int] | npt.NDArray[np.int32]
#: A generator that yields passes and receives their rows, so that several can share each pass.
Passes: TypeAlias = Generator[Pass, Rows, T]


def run_alone(work: Passes[T]) -> T:
    """Run the generator with a pass of its own for each request."""
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
    """Is notified when a cache changes, such as a draft that reads the target's hidden states."""

    def on_pass(self, count: int, first: int) -> None:
        """The cache has read `count` more tokens, from index `first` in the batch on.

        The outputs of the pass are still available.
        """

    def on_trim(self, length: int) -> None:
        """The tokens from position `length` on are dropped; the cache may have dropped more."""


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
        """A copy that stays valid after the next pass."""
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


def common_prefix(left: TokenIds, right: TokenIds) -> int:
    """Length of the longest common prefix of two token lists."""
    length = min(len(left), len(right))
    differs = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(differs.argmax()) if differs.any() else length
