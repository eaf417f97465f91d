"""Markdown that is still being written: finished blocks stay, the last one is redrawn."""

from __future__ import annotations

from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:  # few want Markdown, and its libraries are slow to load
    from markdown_it import MarkdownIt

#: Seconds between two drawings of an unfinished block.
_EVERY = 0.08


class MarkdownStream:
    """Shows text as it arrives. Each update is a single write, so that nothing flickers.

    If an unfinished block is taller than the screen, only its end is shown until it is complete.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._height, self._drawn = 0, 0.0  # lines of the unfinished block on the screen, and when

    @cached_property
    def _parser(self) -> MarkdownIt:
        from markdown_it import MarkdownIt

        return MarkdownIt().enable("table")

    @property
    def works(self) -> bool:
        """Whether this terminal can move its cursor."""
        console = self._console
        dumb = console.is_dumb_terminal or console.legacy_windows
        return console.is_terminal and not dumb

    def feed(self, text: str) -> None:
        """More of the text."""
        self._text += text
        finished = self._finished() if "\n" in text else ""
        if finished:
            self._text = self._text[len(finished) :]
            self._put(self._erasing() + self._rendered(finished) + "\n")
        if finished or monotonic() - self._drawn >= _EVERY:
            self._draw()

    def end(self) -> None:
        """Show what is left; the next text begins another document."""
        if self._text.strip() or self._height:
            self._put(self._erasing() + self._rendered(self._text))
        self._text = ""

    def _finished(self) -> str:
        """The blocks before the last one, which may still grow."""
        tokens = self._parser.parse(self._text)
        starts = [each.map[0] for each in tokens if each.level == 0 and each.map]
        if len(starts) < 2:
            return ""
        return "".join(self._text.splitlines(keepends=True)[: starts[-1]])

    def _draw(self) -> None:
        lines = self._rendered(self._text).splitlines()
        shown = lines[-max(1, self._console.height - 1) :]
        self._put(self._erasing() + "\n".join(shown))
        self._height, self._drawn = len(shown), monotonic()

    def _rendered(self, text: str) -> str:
        """The text with colours; it ends in a newline unless it is empty."""
        if not text.strip():
            return ""
        from rich.markdown import Markdown

        with self._console.capture() as captured:
            # Links keep their address: it can be read, and clicked on where terminals see to it.
            self._console.print(
                Markdown(text, code_theme="ansi_dark", hyperlinks=False), soft_wrap=False
            )
        return captured.get()

    def _erasing(self) -> str:
        """The control codes that erase the unfinished block."""
        up, self._height = self._height - 1, 0
        return (f"\x1b[{up}A" if up > 0 else "") + "\r\x1b[J" if up >= 0 else ""

    def _put(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
