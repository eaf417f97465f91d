"""Messages from a keyboard: line editing, history, completion."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from dspark_gguf.chat.completing import SlashCompleter
from dspark_gguf.chat.terminal import MORE, goes_on, is_block
from dspark_gguf.errors import DSparkError
from dspark_gguf.paths import data_dir, make_private

#: A text with more characters, or with several lines, is edited in $EDITOR.
_LONG = 200
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
        asked: PromptSession[str] = PromptSession()
        try:
            return asked.prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


class _Lines(FileHistory):
    """Goes on in memory when the disk is full."""

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
    """Enter goes on where a message does, so that the history has it as a whole."""
    keys = KeyBindings()

    @Condition
    def is_unfinished() -> bool:
        return goes_on(get_app().current_buffer.text)

    @keys.add("enter", filter=is_unfinished & has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text
        event.current_buffer.document = Document((text if is_block(text) else text[:-1]) + "\n")

    return keys
