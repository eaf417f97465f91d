"""Progress of work that takes long; ``chat/progress.py`` shows it on a terminal."""

from __future__ import annotations

from typing import Protocol


class Tell(Protocol):
    """Called with the present task and the expected seconds left; 0: not known."""

    def __call__(self, text: str, seconds: float = 0.0) -> object:
        """Show it."""


def silent(text: str, seconds: float = 0.0) -> None:
    """Shows nothing."""
