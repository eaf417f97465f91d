"""A stand-in for freed objects: llama.cpp would end the process that uses one."""

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
        """Do nothing: it is closed already."""


def shut(thing: Any) -> None:
    """Turn an object into a `Closed`, wherever it is referenced."""
    vars(thing).clear()
    thing.__class__ = Closed
