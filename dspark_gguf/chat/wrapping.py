"""Break lines between words in text that is still being written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from rich.cells import cell_len

#: Columns where there is no terminal.
WIDTH = 100
_FENCES = ("```", "~~~")
#: An indented line is code, unless it is an item of a list.
_INDENT, _ITEMS = 4, "-*+0123456789"
_JOINER = "\u200d"  # joins two emoji into one


class Wrapper:
    """Breaks wide lines at their last space; each word is written once it has ended.

    Code, table rows, and words wider than the screen are left as they are. Widths are in cells of
    the terminal: a Chinese character takes two, and a line may break after each of them.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._blanks = self._word = ""  # held back
        self._line = ""  # as it came
        self._is_raw = self._in_code = self._is_glued = False

    def feed(self, text: str) -> str:
        """More text; returns what can be written now."""
        return "".join(map(self._take, text))

    def flush(self) -> str:
        """What was held back."""
        return self._place()

    def _take(self, char: str) -> str:
        if char == "\n":
            return self._end_line()
        self._look(char)
        if self._is_raw:
            self._word += char
            return self._place()
        if char in " \t":
            placed = self._place() if self._word else ""
            self._blanks += char
            return placed
        width = cell_len(char)
        joins = not width or "\U0001f3fb" <= char <= "\U0001f3ff" or self._line[-2:-1] == _JOINER
        self._is_glued |= joins and not self._blanks and not self._word
        self._word += char
        if width > 1:
            return self._place()
        return self._place(is_glue=True) if len(self._word) > self._width() else ""

    def _look(self, char: str) -> None:
        """Find out at its first word whether a line is code or a row of a table."""
        if not self._line.strip() and not char.isspace():
            indent = len(self._line.expandtabs(_INDENT))
            self._is_raw = char == "|" or (indent >= _INDENT and char not in _ITEMS)
        self._line += char
        self._is_raw |= self._in_code or self._line.lstrip() in _FENCES

    def _end_line(self) -> str:
        if self._line.lstrip().startswith(_FENCES):
            self._in_code = not self._in_code
        placed = self._place()
        self._column, self._line = 0, ""
        self._is_raw = self._is_glued = False
        return placed + "\n"

    def _place(self, is_glue: bool = False) -> str:
        """The held word, on the next line if it does not fit on this one."""
        text, breaks = self._blanks + self._word, False
        if not (self._is_raw or self._is_glued) and self._column and self._word:
            breaks = self._column + _cells(text, self._column) > self._width()
        if breaks:
            text, self._column = self._word, 0
        self._column += _cells(text, self._column)
        if self._column > (width := self._width()):  # the terminal broke it
            self._column = (self._column - 1) % width + 1
        self._blanks = self._word = ""
        self._is_glued = is_glue
        return "\n" * breaks + text


def columns(stream: TextIO) -> int:
    """The width for lines on this stream."""
    if not stream.isatty():
        return WIDTH
    with suppress(OSError, ValueError):  # else that of stdout would count, which may be a pipe
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    return WIDTH


def folded(text: str, width: int) -> str:
    """A whole text with its lines broken between words."""
    wrapper = Wrapper(lambda: width)
    return wrapper.feed(text) + wrapper.flush()


def _cells(text: str, column: int) -> int:
    """The width of a text that begins in this column; tabs end at multiples of 8."""
    at = column
    for char in text:
        at += 8 - at % 8 if char == "\t" else cell_len(char)
    return at - column
