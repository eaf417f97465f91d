"""What can go wrong, in the words a user reads: needed, got, do."""

from __future__ import annotations


class DSparkError(Exception):
    """The base of every error this package raises on purpose.

    Three short clauses make the text, so that none of them can be forgotten:

    Args:
        needed: what was needed, without the word "needed".
        got: what was there instead.
        do: what the reader can do about it, as an imperative.

    """

    #: The exit code of a command that ends with this error.
    exit_code = 1

    def __init__(self, needed: str, got: str, do: str) -> None:
        super().__init__(f"needed {needed}, got {got}; {do}")
        self.needed, self.got, self.do = needed, got, do


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


class EngineError(DSparkError):
    """llama.cpp failed while it was computing."""


class Cancelled(Exception):  # noqa: N818 - not an error: somebody pressed Ctrl-C
    """The user asked to stop while the models were working."""
