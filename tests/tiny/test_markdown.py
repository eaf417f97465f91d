"""Markdown in answers: rendered on request, on a terminal, whole in the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dspark_gguf.chat.markdown import MarkdownStream
from dspark_gguf.chat.terminal import Screen

TEXT = """# Title

A **bold** word, and `code`, in a paragraph
of two lines.

- one
- two

```python
print("a")

print("b")
```

| a | b |
|---|---|
| 1 | 2 |

The end."""


class Terminal:
    """As much of one as it takes: text, newlines, up, carriage return, erase below."""

    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text):
        k = 0
        while k < len(text):
            if text[k] == "\x1b":
                end = next(j for j in range(k + 2, len(text)) if text[j].isalpha())
                self._act(text[k + 2 : end], text[end])
                k = end
            elif text[k] == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row == len(self.lines))
            elif text[k] == "\r":
                self.column = 0
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + text[k] + line[self.column + 1 :]
                self.column += 1
            k += 1

    def _act(self, number, name):
        assert name in "mAJ", name
        if name == "A":
            self.row -= int(number)
            assert self.row >= 0
        elif name == "J":
            self.lines[self.row :] = [self.lines[self.row][: self.column]]

    def flush(self):
        pass

    def isatty(self):
        return True

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)


def stream(monkeypatch, pieces, height=30, every=0.0):
    monkeypatch.setattr("dspark_gguf.chat.markdown._EVERY", every)
    terminal = Terminal()
    console = Console(file=terminal, width=40, height=height, force_terminal=True,
                      color_system=None, legacy_windows=False)  # fmt: skip
    rendered = MarkdownStream(console)
    for piece in pieces:
        rendered.feed(piece)
    rendered.end()
    return terminal.text


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("height", [4, 30])
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_what_is_shown_in_the_end_does_not_depend_on_the_pieces(monkeypatch, size, height, every):
    """However the text is cut, and however often it is drawn; nothing of a drawing is left over."""
    pieces = [TEXT[k : k + size] for k in range(0, len(TEXT), size)]
    shown = stream(monkeypatch, pieces, height, every)
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    wanted = ["A bold word, and code, in a paragraph of", "two lines.", "• one", "• two",
              'print("a")', 'print("b")', "The end."]  # fmt: skip
    assert [line for line in lines if line in wanted] == wanted
    for mark in ("**", "```", "- one", "|--"):
        assert mark not in shown


def test_a_second_answer_is_another_document(monkeypatch):
    """An open block of code does not swallow it."""
    terminal = Terminal()
    console = Console(file=terminal, width=40, force_terminal=True, legacy_windows=False)
    rendered = MarkdownStream(console)
    rendered.feed("```\ncode")
    rendered.end()
    rendered.feed("**bold**")
    rendered.end()
    assert "bold" in terminal.text
    assert "**" not in terminal.text


def test_plain_by_default_and_off_a_terminal(monkeypatch, capsys):
    """A script gets the text as it is."""
    for markdown in (False, True):
        screen = Screen()
        screen.markdown = markdown
        screen.write("**bold**\n")
        screen.end_answer()
        assert capsys.readouterr().out == "**bold**\n"


def test_a_screen_renders_what_is_said_not_what_is_thought(monkeypatch):
    """Thoughts stay as they are."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    screen.markdown = True
    screen.write("**thought**", dim=True)
    screen.write("**said**")
    screen.end_answer()
    assert "**thought**" in terminal.text
    assert "said" in terminal.text.replace("**thought**", "")
    assert "**said**" not in terminal.text


def test_a_terminal_that_cannot_move_its_cursor():
    """Nothing is rendered there."""
    console = Console(file=io.StringIO(), force_terminal=False)
    assert not MarkdownStream(console).works
