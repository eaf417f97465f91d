"""What somebody who waits is told; ``chat/progress.py`` shows it on a terminal."""

from __future__ import annotations

from typing import Protocol


class Tell(Protocol):
    """Called with what is done now, and how many seconds it should still take; 0: not known."""

    def __call__(self, text: str, seconds: float = 0.0) -> object:
        """Show it."""


def untold(text: str, seconds: float = 0.0) -> None:
    """Shows nothing."""
