"""Callbacks for progress of long work; ``chat/progress.py`` shows it on a terminal."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called with the current task and the expected seconds left; 0: unknown."""

    def __call__(self, text: str, seconds: float = 0.0) -> object:
        """Show or ignore it."""


def no_progress(text: str, seconds: float = 0.0) -> None:
    """Ignores progress."""
