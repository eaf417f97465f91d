"""Separate thoughts from the answer in a stream of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
#: Mistral's tags, and what is read in their place.
MISTRAL = {"[THINK]": OPEN, "[/THINK]": CLOSE}
#: About a template that always thinks, or never does.
FIXED = "the chat template of this model cannot switch thinking"


def note_if_fixed(template: Any, think: bool | None, say: Callable[[str], object]) -> None:
    """Say so if the settings want thinking on or off and a `ChatTemplate` cannot switch it."""
    if think is not None and not template.switches_thinking:
        say(f"note: {FIXED}")


class ThinkSplitter:
    """Splits streamed text into thoughts, tags included, and the answer.

    It begins `inside` a thought if the prompt opened one.
    """

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self._held = ""

    def feed(self, text: str, ends: bool = False) -> Iterator[tuple[str, bool]]:
        """Pieces of non-empty text, each with whether it is thought.

        The possible start of a tag is held back, unless the text `ends` here.
        """
        self._held += text
        while True:
            tag = CLOSE if self._inside else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            self._held = after
            if before and not self._inside:
                yield before, False
            yield (before + tag if self._inside else tag), True
            self._inside = not self._inside
        held, starts = self._held, range(1, 1 if ends else len(tag))
        ready = len(held) - max((k for k in starts if held.endswith(tag[:k])), default=0)
        self._held = held[ready:]
        if ready:
            yield held[:ready], self._inside
