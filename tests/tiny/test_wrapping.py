"""Lines on a terminal break between words, however the text comes in."""

from __future__ import annotations

import io
import os
import re
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from dspark_gguf.chat.terminal import Screen
from dspark_gguf.chat.wrapping import WIDTH, Wrapper, columns, folded

WORDS = "Once upon a time there was a fox named Felix who lived in a small village. " * 3
URL = "https://example.org/" + "a" * 90


def streamed(text, width, size):
    """What a terminal gets of a text in pieces of this size."""
    wrapper = Wrapper(lambda: width)
    pieces = [wrapper.feed(text[k : k + size]) for k in range(0, len(text), size)]
    return "".join(pieces) + wrapper.flush()


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_no_word_is_cut(width, size):
    """Every line fits, and the words are what they were."""
    shown = streamed(WORDS, width, size)
    assert shown.split() == WORDS.split()
    assert max(map(len, shown.rstrip().split("\n"))) <= width
    assert shown == folded(WORDS, width)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_code_tables_and_addresses_keep_their_text(size):
    """They are copied from the screen: no line break of ours is in them."""
    code = "    result = first_number + second_number + third_number"
    for text in (
        f"```python\n{code}\n{code}\n```\n", f"{code}\n", f"\t{code.strip()}\n",
        "| a long first column | a long second column | a third |\n", f"x\n{URL}\ny\n",
    ):  # fmt: skip
        assert streamed(text, 30, size) == text
    assert streamed(f"See {URL} for more of it.", 30, size).split("\n") == [
        "See", URL + " for more", "of it.",
    ]  # fmt: skip
    shown = streamed(f"```\n{code}\n```\n{WORDS}", 30, size).partition("```\nOnce")[2]
    assert max(map(len, shown.split("\n"))) <= 30


def test_a_nested_item_is_no_code():
    """It is indented as much."""
    assert max(map(len, streamed("    - " + WORDS, 40, 3).rstrip().split("\n"))) <= 40


@pytest.mark.parametrize("size", [1, 2, 50])
def test_wide_signs(size):
    """Chinese has no blanks: it comes at once, and lines may break behind every sign."""
    text = "从前有一只狐狸住在一个小村庄里" * 4
    shown = streamed(text, 21, size)
    assert shown.replace("\n", "") == text
    assert max(map(cell_len, shown.split("\n"))) <= 21
    assert Wrapper(lambda: 21).feed("从前") == "从前"
    assert "\n🏽" not in streamed("👍🏽" * 12, 21, size)


class Stream(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_answers_and_notes(monkeypatch, is_terminal):
    """On a terminal of 40 columns; a pipe gets every byte as it is."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out, err = Stream(is_terminal), Stream(is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    screen = Screen()
    for word in re.findall(r"\S+\s*", WORDS):
        screen.write(word, dim=word.startswith("fox"))
    screen.end_answer()
    screen.note(WORDS.strip())
    for said, text in ((out.getvalue(), WORDS + "\n"), (err.getvalue(), WORDS.strip() + "\n")):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
        assert plain.split() == WORDS.split()
        if is_terminal:
            assert max(len(line.rstrip()) for line in plain.split("\n")) <= 40
        else:
            assert said == text


def test_the_width_is_that_of_the_stream(monkeypatch):
    """Not that of stdout, which may be a pipe; COLUMNS overrules it."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns(io.StringIO()) == WIDTH
    sizes = {7: os.terminal_size((61, 24))}
    monkeypatch.setattr("os.get_terminal_size", lambda number: sizes[number])
    stream = SimpleNamespace(isatty=lambda: True, fileno=lambda: 7)
    assert columns(stream) == 61
    monkeypatch.setenv("COLUMNS", "47")
    assert columns(stream) == 47
