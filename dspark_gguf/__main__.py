"""The commands: ``python -m dspark_gguf``, and where the script ``dspark-gguf`` begins."""

from __future__ import annotations

import signal
import sys
from threading import Timer, main_thread
from typing import Any


def main() -> None:
    """Run a command. Ctrl-C ends it at any moment, while it is imported too."""
    sys.unraisablehook = _dropped
    try:
        from dspark_gguf.cli import main as program

        program(prog_name="dspark-gguf")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        # Python dies of SIGINT in the end where Ctrl-C has ever ended the `exec` of a text, as of
        # a dataclass that is made, unless another one ran since.
        exec("")


def _dropped(error: Any) -> None:
    """Ctrl-C where Python drops errors, as in a callback of C or of a weak reference, comes again.

    Other errors are printed.
    """
    if error.exc_type is KeyboardInterrupt:
        Timer(0.01, _press).start()
    else:
        sys.__unraisablehook__(error)


def _press() -> None:
    """Ctrl-C; what the main thread waits for ends."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    main()
