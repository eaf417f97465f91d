"""Types of arrays, and reading those of an ``.npz`` file, checked before anything is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

#: Compressed zeros become a thousand times as long: a small file may claim all memory.
MAX_BYTES = 1024**3


class NotArraysError(Exception):
    """Not a file of arrays; says what it is instead."""


def load_arrays(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, npt.NDArray[Any]]:
    """All arrays by name; nothing in the file is ever executed.

    Another kind of file, a damaged one, or one that unpacks to more than `max_bytes` is a
    NotArraysError, a missing file a FileNotFoundError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max_bytes:
            raise NotArraysError(f"it unpacks to {size / 1024**3:.0f} GiB")
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (FileNotFoundError, NotArraysError):
        raise
    except Exception:
        # zip, zlib and numpy raise all kinds of errors over damaged bytes; an array that claims
        # more than its file has is a MemoryError or a ValueError, before it is read.
        raise NotArraysError("another kind of file") from None
