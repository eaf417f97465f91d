"""What can go wrong, in the words a user reads: the problem, and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DSparkError(Exception):
    """The base of every error this package raises on purpose.

    `problem` is a clause ("cannot read notes.txt: no such file"), `hint` what the reader can do
    about it, in sentences ("Check the path.").
    """

    exit_code = 1  # of a command that ends with this error

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}. {hint}")
        self.problem, self.hint = problem, hint

    def __reduce__(self) -> tuple[type[DSparkError], tuple[str, str]]:
        """So that one process can raise what another one met."""
        return type(self), (self.problem, self.hint)


class UsageError(DSparkError):
    """An option, a setting, a path or an input that cannot be used as given."""

    exit_code = 2


class ModelError(DSparkError):
    """A file that is not a model llama.cpp can generate text with."""


class PairError(DSparkError):
    """Two models that do not fit each other."""

    exit_code = 3


class ResourceError(DSparkError):
    """Not enough memory, or not enough room in the context."""

    exit_code = 4


class CacheFullError(ResourceError):
    """A pass has no room in the cache; nothing was read."""


class EngineError(DSparkError):
    """llama.cpp failed while it was computing."""


class Cancelled(Exception):  # noqa: N818 - not an error: somebody pressed Ctrl-C
    """The user asked to stop while the models were working."""

    exit_code = 130  # of a command that was interrupted


def reason_of(error: Exception) -> str:
    """Why a file could not be used, in the system's words: without numbers and paths."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return getattr(error, "strerror", None) or str(error)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that this one abbreviates, or one that is spelled alike."""
    name, known = name.lower(), list(known)
    begun = [each for each in known if each.startswith(name)]
    alike = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return next(iter([*begun, *alike]), None)


def meant(name: str, known: Iterable[str], sign: str = "") -> str:
    """The beginning of a hint: "Did you mean /help? ", after a `sign`; empty without one alike."""
    near = nearest(name, known)
    return f"Did you mean {sign}{near}? " if near else ""
