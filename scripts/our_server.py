"""`dspark-gguf serve` in a separate process, for the scripts that measure it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_START = "from dspark_gguf.cli import main; main()"


@contextmanager
def our_server(words: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server that is ready, and its process, which ends with the `with` block."""
    command = [sys.executable, "-c", _START, "serve", "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            if at := re.search(r"http://\S+:\d+", line):
                yield at[0], process
                break
        else:
            raise SystemExit("the server does not start")
    finally:
        process.terminate()
        process.wait(30)
