"""stdin, stdout and stderr, in any state that a shell, a service or an old console leaves them."""

from __future__ import annotations

import codecs
import io
import os
import sys

_REPLACED = "dspark-gguf.replaced"


def settle() -> None:
    """Make stdout take any text, and put the null device where a stream was closed.

    Else the next file to be opened, a model's cache perhaps, would get the number of the closed
    stream, and llama.cpp's messages with it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    codecs.register_error(_REPLACED, _replaced)
    # "?" for what the encoding lacks, since people read answers. stderr escapes by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_REPLACED)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The raw bytes of a file name that is not text; "?" for any other character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    raw = b"".join(
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else b"?" for char in part
    )
    return raw, error.end
