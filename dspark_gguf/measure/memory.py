"""How much memory this process took at most."""

from __future__ import annotations

import sys

import psutil


def peak_bytes() -> int:
    """The most main memory that this process had so far.

    Weights that are mapped from a file count as far as they were read. Memory of a GPU does not.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
