"""Turn Ctrl-C and other signals into exceptions, so that everything is saved."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal (SIGHUP) raise SystemExit, so everything is saved.

    The SystemExit has 128 + the signal's number, as shells report it.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        for other in heard:  # a second signal must not interrupt saving
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    with _handling(("SIGTERM", "SIGHUP"), on_signal) as heard:
        try:
            yield
        except OSError as error:
            gone = error.errno == errno.EIO and error.filename is None
            if not gone or "SIGHUP" not in (each.name for each in heard):
                raise
            # Writing to a closed terminal may fail before its signal is seen.
            raise SystemExit(128 + signal.Signals["SIGHUP"]) from None


@contextmanager
def interruptible(interrupt: Event) -> Iterator[None]:
    """Inside, the first Ctrl-C sets `interrupt`, the second raises KeyboardInterrupt.

    So the models stop between two passes with consistent caches, and no text is lost.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()

    interrupt.clear()
    try:
        with _handling(("SIGINT",), on_signal):
            yield
    finally:
        interrupt.clear()


@contextmanager
def held(stop: Event | None = None) -> Iterator[Event]:
    """Inside, Ctrl-C only sets the yielded event; at the end the signal is raised again.

    For C functions that call Python, where an exception would be printed and lost, and for changes
    that must be completed. Meanwhile `stop` is set, too, so that long work inside can end early.
    """
    pressed = Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        pressed.set()
        if stop is not None:
            stop.set()

    try:
        with _handling(("SIGINT",), on_signal):
            yield pressed
    finally:
        if pressed.is_set():
            if stop is not None:
                stop.clear()
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _handling(
    names: Sequence[str], handler: Callable[[int, FrameType | None], None]
) -> Iterator[list[signal.Signals]]:
    """Install `handler`, yield the signals that it handles, and restore their handlers afterwards.

    Only the main thread gets signals. An ignored signal stays ignored: `nohup` ignores SIGHUP; a
    shell script ignores SIGINT in its background jobs, which also receive the terminal's Ctrl-C. A
    handler that was not installed by Python (None) could not be restored.
    """
    before: dict[signal.Signals, Any] = {}
    if current_thread() is main_thread():
        for number in (signal.Signals[name] for name in names if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield list(before)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
