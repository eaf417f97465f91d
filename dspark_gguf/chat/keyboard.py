"""Messages typed on a keyboard: line editing, history, completion."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import get_args

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from dspark_gguf.chat.registry import COMMANDS
from dspark_gguf.chat.settable import SETTABLE
from dspark_gguf.chat.terminal import MORE, goes_on, is_block
from dspark_gguf.config import Settings
from dspark_gguf.errors import DSparkError
from dspark_gguf.paths import data_dir, make_private

#: A text with more characters, or with several lines, is edited in $EDITOR.
_LONG = 200
#: Commands that take one of a few words, and those that take files.
_WORDS = {
    "/spec": ("on", "off", "auto"), "/think": ("on", "off"), "/copy": ("code",),
    "/system": ("none",),
}  # fmt: skip
_FILES = ("/read", "/load", "/save", "/model")
# Without a handler, Python shows its errors: a signal while the history is read would be one.
logging.getLogger("prompt_toolkit").addHandler(logging.NullHandler())


class TerminalReader:
    """Messages of one or several lines, with a history across chats unless it is `private`.

    EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C.
    """

    def __init__(self, private: bool = False) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if private else _history(),
            completer=SlashCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_keys(),
            prompt_continuation=MORE,
            enable_open_in_editor=True,
            enable_suspend=True,
        )

    def line(self, prompt: str, default: str = "") -> str:
        """The next message, typed; pasted lines stay one."""
        return self._session.prompt(prompt, default=default)

    def edited(self, text: str) -> str:
        """In $EDITOR if the text is long and there is one, else at the prompt; "": leave it."""
        has_editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if has_editor and (len(text) > _LONG or "\n" in text):
            return (click.edit(text, extension=".md") or "").rstrip("\n")
        try:
            return self.line("edit> ", default=text)
        except (EOFError, KeyboardInterrupt):
            return ""

    def agreed(self, question: str) -> bool:
        """Whether the answer is yes; it is not part of the history."""
        asked: PromptSession[str] = PromptSession(enable_suspend=True)
        try:
            return asked.prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


class _Lines(FileHistory):
    """Keeps the history in memory when the disk is full."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history() -> History:
    try:
        path = data_dir() / "history"
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        make_private(path)
        return _Lines(str(path))
    except (OSError, DSparkError):  # a home that cannot be written to
        return InMemoryHistory()


def _keys() -> KeyBindings:
    """Enter continues an unfinished message, so that the history keeps it in one piece."""
    keys = KeyBindings()

    @Condition
    def is_unfinished() -> bool:
        return goes_on(get_app().current_buffer.text)

    @keys.add("enter", filter=is_unfinished & has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text
        event.current_buffer.document = Document((text if is_block(text) else text[:-1]) + "\n")

    return keys


class SlashCompleter(Completer):
    """Completes the last word of a slash command."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """The words that may be meant, or files."""
        *before, word = document.text_before_cursor.split(" ")
        if before and before[0] in _FILES:
            yield from self._files.get_completions(Document(word), complete_event)
            return
        for each in _fitting(before, word):
            if each.startswith(word):
                yield Completion(each, start_position=-len(word))


def _fitting(before: list[str], word: str) -> Iterator[str]:
    """Words that can follow `before`."""
    if not before:
        yield from (f"/{name}" for name in sorted(COMMANDS) if word.startswith("/"))
    elif before == ["/set"]:
        yield from sorted(name for names in SETTABLE.values() for name in names)
    elif before[0] == "/set" and len(before) == 2:
        yield from ("default", *_values(before[1]))
    elif len(before) == 1:
        yield from _WORDS.get(before[0], ())


def _values(name: str) -> Iterator[str]:
    """The values of a setting that has only a few."""
    for section, names in SETTABLE.items():
        if name in names:
            kind = type(getattr(Settings(), section)).model_fields[name].annotation
            words = ("on", "off") if kind is bool else get_args(kind)
            yield from (word for word in words if isinstance(word, str))
