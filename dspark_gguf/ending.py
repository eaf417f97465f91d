"""Decide where an answer ends, and turn its tokens into text."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from dspark_gguf.config import Limits
from dspark_gguf.engine.protocol import Tokenizer
from dspark_gguf.records import FinishReason


class Ending:
    """Turns emitted tokens into text and stops at the first token that ends the answer.

    The result does not depend on how tokens are split into rounds. Text is held back while it may
    be part of a character or a stop string. `spelled` has text for tokens that have none otherwise.

    `finish_reason` is why the answer ended, None until then.
    """

    def __init__(
        self, limits: Limits, tokenizer: Tokenizer, spelled: Mapping[int, bytes] | None = None
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._spelled = tokenizer, spelled or {}
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._stops = limits.stop
        self._left = limits.max_tokens
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def room(self, free: int) -> int:
        """Number of tokens that may still come, with `free` cells in the context."""
        return free if self._left is None else min(self._left, free)

    def take(self, fresh: Sequence[int]) -> tuple[list[int], str]:
        """Returns the tokens that belong to the answer, and the text that is now certain."""
        kept: list[int] = []
        for token in fresh:
            kept.append(token)
            self.finish_reason = self._after(token)
            if self.finish_reason:
                return kept, self.flush()
        certain = len(self._held) - (self._undecided() if self._stops else 0)
        text, self._held = self._held[:certain], self._held[certain:]
        return kept, text

    def flush(self) -> str:
        """The text that was held back; an incomplete character is dropped."""
        text, self._held = self._held, ""
        self._bytes.reset()
        return text

    def _after(self, token: int) -> FinishReason | None:
        if self._left is not None:
            self._left -= 1
        if token in self._end_tokens:
            return "stop"
        self._held += self._bytes.decode(self._spelled.get(token) or self._tokenizer.piece(token))
        if self._stops:
            places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
            if places:
                self._held = self._held[: min(places)]
                self._bytes.reset()
                return "stop"
        return "length" if self._left == 0 else None

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        for length in range(min(len(self._held), max(map(len, self._stops), default=0)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class Endless:
    """An answer that the consumer ends; it may fill the context."""

    finish_reason: FinishReason | None = None

    def room(self, free: int) -> int:
        """One token more than fits: the last one need not be read."""
        return free + 1

    def take(self, fresh: Sequence[int]) -> tuple[list[int], str]:
        """All tokens; the consumer makes the text."""
        return list(fresh), ""

    def flush(self) -> str:
        """Nothing is held back."""
        return ""
