"""Reading lines and writing answers, on a terminal or in a pipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Timer, current_thread, main_thread
from types import FrameType
from typing import Any, BinaryIO, Literal, Protocol

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.paths import data_dir, make_private
from dspark_gguf.visible import printable, visible

PROMPT, MORE = ">>> ", "... "
_BLOCK = '"""'

#: Seconds of silence after which it is said that somebody waits.
PATIENCE = 3.0


class Screen:
    """Answers go to stdout, everything else to stderr; colour only where a terminal shows it."""

    def __init__(self) -> None:
        # rich finds out by itself whether a stream is a terminal, but keeps dim and bold under
        # NO_COLOR; without a colour system it writes plain text.
        colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        self._out, self._err = (
            Console(file=stream, highlight=False, soft_wrap=True, color_system=colours)
            for stream in (sys.stdout, sys.stderr)
        )

    @property
    def on_terminal(self) -> bool:
        """Whether somebody watches the answer appear."""
        return self._out.is_terminal

    def write(self, text: str, dim: bool = False) -> None:
        """A piece of an answer, as it is; on a terminal without control characters."""
        if not self.on_terminal:
            sys.stdout.write(text)
        elif dim:
            # A segment, not a Text: its tabs would be spaces.
            self._out.print(Segments([Segment(printable(text), Style(dim=True))]), end="")
        else:
            self._out.file.write(printable(text))
        self._out.file.flush()

    def note(self, line: str) -> None:
        """Something about the work, not part of it."""
        self._err.print(Text(visible(line), style="dim"))

    def error(self, line: str) -> None:
        """Something that went wrong."""
        self._err.print(Text(visible(line), style="red"))

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Names and values, aligned."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self._err.print(Text(visible(f"  {name:<{width}}  {value}")))


@contextmanager
def noted(line: str) -> Iterator[None]:
    """Say `line` if the block takes longer than `PATIENCE`."""
    timer = Timer(PATIENCE, Screen().note, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Reader(Protocol):
    """Where lines come from."""

    def line(self, prompt: str, default: str = "") -> str:
        """One line without its end.

        Raises:
            EOFError: there is no more.
            KeyboardInterrupt: the user pressed Ctrl-C.

        """


class PipeReader:
    """Lines of a file or a pipe; no prompt."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._heard = False

    def line(self, prompt: str, default: str = "") -> str:
        """The next line; before the first one it says what it waits for."""
        said = "waiting for messages on stdin, one a line"
        with nullcontext() if self._heard else noted(said):
            line = self._stream.readline()
        self._heard = True
        if not line:
            raise EOFError
        return decoded(line, "stdin").rstrip("\r\n")


class TerminalReader:
    """Line editing and a history across sessions, by prompt_toolkit; pasted lines stay one."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory

        class Lines(FileHistory):
            """The last lines are not lost over a full disk, only forgotten with the process."""

            def store_string(self, string: str) -> None:
                with suppress(OSError):
                    super().store_string(string)

        history: History
        try:
            path = data_dir() / "history"
            os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
            make_private(path)
            history = Lines(str(path))
        except (OSError, DSparkError):  # a home that cannot be written to is no reason not to chat
            history = InMemoryHistory()
        self._session: PromptSession[str] = PromptSession(history=history)

    def line(self, prompt: str, default: str = "") -> str:
        """The next line, typed."""
        return self._session.prompt(prompt, default=default)


def decoded(data: bytes, source: str) -> str:
    """Text of UTF-8 bytes, with or without a byte order mark.

    Raises:
        UsageError: they are no UTF-8; says where.

    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"UTF-8 text from {source}",
            f"byte 0x{data[error.start]:02x} at offset {error.start}",
            "convert it, for instance with iconv",
        ) from None


def read_text(path: Path) -> str:
    """Text of a UTF-8 file.

    Raises:
        UsageError: it cannot be read, or is no UTF-8.

    """
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"to read {path}", str(error.strerror), "check the path") from None


def read_message(reader: Reader, default: str = "") -> str:
    r"""One message: a line, lines that end in ``\``, or a block between triple quotes.

    Raises:
        EOFError: there is no more.
        KeyboardInterrupt: the user pressed Ctrl-C; what was typed is forgotten.

    """
    line = reader.line(PROMPT, default)
    if line.lstrip().startswith(_BLOCK):
        return _read_block(reader, line.lstrip()[len(_BLOCK) :])
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_next_line(reader))
    return "\n".join(lines)


def _read_block(reader: Reader, first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_BLOCK):
        lines.append(_next_line(reader, at_end=_BLOCK))
    lines[-1] = lines[-1].rstrip()[: -len(_BLOCK)]
    return "\n".join(lines).strip("\n")


def _next_line(reader: Reader, at_end: str = "") -> str:
    """One more line of a message; the end of the input ends the message too."""
    try:
        return reader.line(MORE)
    except EOFError:
        return at_end


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and a closed terminal (SIGHUP) unwind like an error: everything is kept.

    Raises:
        SystemExit: with 128 + the signal's number, as shells report it.

    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        for other in heard:  # a second one must not cut the saving short
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    with _handling(("SIGTERM", "SIGHUP"), on_signal) as heard:
        yield


@contextmanager
def interruptible(interrupt: Event) -> Iterator[None]:
    """Inside, the first Ctrl-C sets `interrupt`, the second raises KeyboardInterrupt.

    So the models stop between two passes, with clean caches, and nothing that was said is lost.
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
def _handling(
    names: Sequence[str], handler: Callable[[int, FrameType | None], None]
) -> Iterator[list[signal.Signals]]:
    """Yield those of the signals that go to `handler` inside; afterwards it is as before.

    Only the main thread is told of signals. One that is ignored stays ignored: whoever started us
    wants it so. `nohup` ignores SIGHUP; a script's shell ignores SIGINT in its background jobs,
    which get the Ctrl-C that is meant for the foreground. A handler that was not installed by
    Python (None) could not be put back.
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
