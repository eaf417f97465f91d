"""What stands in the place of something freed: llama.cpp ends the process that uses that."""

from __future__ import annotations

from typing import Any

from dspark_gguf.errors import UsageError


class Closed:
    """Refuses every use with a `UsageError`."""

    _why = "these models were closed", "Load them again."

    def __init__(self, problem: str, hint: str) -> None:
        self._why = problem, hint

    def __getattr__(self, name: str) -> Any:
        raise UsageError(*self._why)

    def close(self) -> None:
        """It is."""


def shut(thing: Any) -> None:
    """Make an object a `Closed`, for all who know it."""
    vars(thing).clear()
    thing.__class__ = Closed
