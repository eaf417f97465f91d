"""Errors, each with a problem and a hint for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DSparkError(Exception):
    """Base class of all errors that this package raises on purpose.

    `problem` is a clause ("cannot read notes.txt: no such file"), `hint` says what to do about it,
    in sentences ("Check the path.").
    """

    exit_code = 1  # exit code of a command that fails with it

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}. {hint}")
        self.problem, self.hint = problem, hint

    def __reduce__(self) -> tuple[type[DSparkError], tuple[str, str]]:
        """For pickling, so that errors can cross processes."""
        return type(self), (self.problem, self.hint)


class UsageError(DSparkError):
    """An option, a setting, a path or an input that cannot be used as given."""

    exit_code = 2


class ModelError(DSparkError):
    """A file with which llama.cpp cannot generate text."""


class PairError(DSparkError):
    """Two models that do not work together."""

    exit_code = 3


class ResourceError(DSparkError):
    """Not enough memory, or not enough room in the context."""

    exit_code = 4


class CacheFullError(ResourceError):
    """The KV cache has no room for a pass; nothing was read."""


class EngineError(DSparkError, RuntimeError):
    """llama.cpp failed during a computation; a RuntimeError, as in llama-cpp-python."""


class Cancelled(Exception):  # noqa: N818 - not an error: somebody pressed Ctrl-C
    """The user asked to stop while the models were working."""

    exit_code = 130  # exit code of an interrupted command


def reason_of(error: Exception) -> str:
    """Why a file could not be used, in the system's words: without numbers and paths."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    return getattr(error, "strerror", None) or str(error)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that this one abbreviates, or one with a similar spelling."""
    name, known = name.lower(), list(known)
    begun = [each for each in known if each.startswith(name)]
    alike = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return next(iter([*begun, *alike]), None)


def meant(name: str, known: Iterable[str], sign: str = "") -> str:
    """The start of a hint, "Did you mean /help? " with `sign` "/"; empty if nothing is similar."""
    near = nearest(name, known)
    return f"Did you mean {sign}{near}? " if near else ""
