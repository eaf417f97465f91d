"""Telling thoughts from the answer in a stream of text."""

from __future__ import annotations

from collections.abc import Iterator

OPEN, CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Cuts streamed text into pieces that are thought or said; the tags belong to the thought.

    Args:
        inside: whether the text begins inside a thought, because the prompt opened one.

    """

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """Pieces of non-empty text, each with whether it is thought."""
        self._held += text
        while True:
            tag = CLOSE if self._inside else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            self._held = after
            if self._inside:
                yield before + tag, True
            else:
                if before:
                    yield before, False
                yield tag, True
            self._inside = not self._inside
        keep = _overlap(self._held, tag)
        ready, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        if ready:
            yield ready, self._inside

    def flush(self) -> Iterator[tuple[str, bool]]:
        """What was held back as the possible start of a tag."""
        if self._held:
            yield self._held, self._inside
        self._held = ""


def _overlap(text: str, tag: str) -> int:
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
