"""Reading lines and writing answers, on a terminal or in a pipe."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from textwrap import wrap
from threading import Timer
from typing import BinaryIO, Literal, Protocol

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from dspark_gguf.chat.markdown import MarkdownStream
from dspark_gguf.chat.wrapping import Wrapper, folded
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import GIB, file_errors, read_whole
from dspark_gguf.visible import printable, visible

PROMPT, MORE = ">>> ", "... "
_BLOCK = '"""'

#: Seconds of silence until a note says what the program waits for.
PATIENCE = 3.0


class Screen:
    """Answers go to stdout, everything else to stderr; colour only where a terminal shows it.

    On a terminal lines break between words.
    """

    def __init__(self) -> None:
        # rich keeps dim and bold under NO_COLOR; without a colour system it writes plain text.
        colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        self._out, self._err = (
            Console(file=stream, highlight=False, soft_wrap=True, color_system=colours)
            for stream in (sys.stdout, sys.stderr)
        )
        self._wrapper = Wrapper(lambda: self._out.width)
        self._rendered = MarkdownStream(self._out)
        self.markdown = False  # whether answers are rendered, where the terminal can
        self._dim, self._in_line = False, False

    @property
    def on_terminal(self) -> bool:
        """Whether answers go to a terminal."""
        return self._out.is_terminal

    def write(self, text: str, dim: bool = False) -> None:
        """Write a piece of an answer unchanged, but without control characters on a terminal."""
        renders = self.markdown and not dim and self._rendered.works
        if renders and self._in_line:  # after a thought
            self._put(self._wrapper.feed("\n"))
        if text:
            self._in_line = not renders and not text.endswith("\n")
        if not self.on_terminal:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        if dim is not self._dim:
            self._rendered.end()
            self._put(self._wrapper.flush())
            self._dim = dim
        if renders:
            self._rendered.feed(printable(text))
            return
        self._put(self._wrapper.feed(printable(text)))

    def end_answer(self) -> None:
        """End the answer's last line unless it has ended."""
        self._rendered.end()
        if self._in_line:
            self.write("\n", dim=self._dim)

    def copy(self, text: str) -> bool:
        """Ask the terminal to put text on the clipboard; returns whether there is a terminal."""
        if self.on_terminal:
            data = base64.b64encode(text.encode("utf-8", "replace")).decode()
            self._out.file.write(f"\x1b]52;c;{data}\x07")
            self._out.file.flush()
        return self.on_terminal

    def note(self, line: str) -> None:
        """A line about the work, such as the status of an answer."""
        self._say(line, "dim")

    def error(self, line: str) -> None:
        """A line about something that went wrong."""
        self._say(line, "red")

    def _put(self, text: str) -> None:
        if self._dim and text:
            # A segment, not a Text: its tabs would be spaces.
            self._out.print(Segments([Segment(text, Style(dim=True))]), end="")
        else:
            self._out.file.write(text)
        self._out.file.flush()

    def _say(self, line: str, style: str) -> None:
        self.end_answer()  # which a signal or an error may have cut off
        text = visible(line)
        text = folded(text, self._err.width) if self._err.is_terminal else text
        self._err.print(Text(text, style=style))

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Names and values, aligned."""
        indent = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            room = max(20, self._err.width - indent)
            first, *more = wrap(visible(value), room, break_on_hyphens=False)
            self._err.print(Text(f"{name:{indent}}{first}"))
            for line in more:
                self._err.print(Text(" " * indent + line))


@contextmanager
def note_on_wait(line: str) -> Iterator[None]:
    """Say `line` if the block takes longer than `PATIENCE`."""
    timer = Timer(PATIENCE, Screen().note, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class PipeReader:
    """Lines of a file or a pipe; no prompt. EOFError after the last."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._heard = False

    def line(self, prompt: str, default: str = "") -> str:
        """The next line; before the first one a note says what it waits for."""
        note = note_on_wait("waiting for messages on stdin, one a line")
        with nullcontext() if self._heard else note:
            line = self._stream.readline()
        self._heard = True
        if not line:
            raise EOFError
        return decode_text(line, "stdin").rstrip("\r\n")

    def edited(self, text: str) -> str:
        """The next line."""
        return self.line("")

    def agreed(self, question: str) -> bool:
        """Always yes: a script means what it says."""
        return True


class Reader(Protocol):
    """Where messages come from. EOFError at the end, KeyboardInterrupt at Ctrl-C."""

    def line(self, prompt: str, default: str = "") -> str:
        """One line; from a terminal, perhaps several lines of one message."""

    def edited(self, text: str) -> str:
        """A text, changed by the user."""

    def agreed(self, question: str) -> bool:
        """Whether the user says yes."""


def decode_text(data: bytes, source: str) -> str:
    """Text of UTF-8 bytes, with or without a byte order mark; a UsageError says where not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        hint = "Convert it, for instance with iconv."
        raise UsageError(f"{source} is not UTF-8 text: {place}", hint) from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; a UsageError if it cannot be read, or is not UTF-8."""
    with file_errors("read", path):
        return decode_text(read_whole(path, GIB), str(path))


def read_message(reader: Reader) -> str:
    r"""One message: a line, lines that end in ``\``, or a block between triple quotes.

    The end of the input ends a message too; Ctrl-C forgets what was typed.
    """
    text = reader.line(PROMPT)
    while goes_on(text):
        try:
            more = reader.line(MORE)
        except EOFError:
            more = _BLOCK if is_block(text) else ""
        text = f"{text if is_block(text) else text[:-1]}\n{more}"
    if not is_block(text):
        return text
    return text.strip().removeprefix(_BLOCK).removesuffix(_BLOCK).strip("\n")


def is_block(text: str) -> bool:
    """Whether a message begins with three quotes."""
    return text.lstrip().startswith(_BLOCK)


def goes_on(text: str) -> bool:
    """Whether another line belongs to a message."""
    if is_block(text):
        return not text.strip().removeprefix(_BLOCK).endswith(_BLOCK)
    return text.endswith("\\")


@contextmanager
def silent_keys() -> Iterator[None]:
    """Inside, keys are not shown; what was typed waits for the next prompt."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    silent = list(before)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(number, termios.TCSANOW, silent)
    try:
        yield
    finally:
        with suppress(termios.error):  # its window may be closed
            termios.tcsetattr(number, termios.TCSANOW, before)
