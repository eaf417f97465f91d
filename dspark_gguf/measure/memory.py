"""How much memory this process took at most."""

from __future__ import annotations

import sys


def peak_bytes() -> int | None:
    """The most main memory that this process had so far; None where the system does not tell.

    Weights that are mapped from a file count as far as they were read. Memory of a GPU does not.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
