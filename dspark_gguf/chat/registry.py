"""Slash commands by name: recognising them, typing errors included, and running them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import AnswerRounds, Session
from dspark_gguf.chat.terminal import Reader, Screen
from dspark_gguf.errors import UsageError, meant, nearest
from dspark_gguf.visible import shortened


class Chat(Protocol):
    """The part of `loop.Chat` that commands use."""

    session: Session
    screen: Screen
    reader: Reader
    saved: SavedSession | None
    attached: list[str]

    def show(self, rounds: AnswerRounds) -> None:
        """Stream an answer, then its status line."""

    def switch(self, model: str, draft: str | None) -> None:
        """Switch to other models."""


class Leave(Exception):  # noqa: N818 - nothing went wrong
    """The user wants to leave."""


_Function = Callable[[Chat, str], None]

COMMANDS: dict[str, _Function] = {}
#: What ``/help`` shows.
HELP: list[tuple[str, str]] = []
#: Commands that take no argument.
_ALONE: set[_Function] = set()

#: A slash, a word, and an argument. Paths, comments and fractions are ordinary text.
_FORM = re.compile(r"/(\?|[^\W\d_][\w-]*)(?:\s+(.*))?", re.DOTALL)


def command(*names: str, usage: str = "", summary: str) -> Callable[[_Function], _Function]:
    """Register a slash command under these names."""

    def register(function: _Function) -> _Function:
        COMMANDS.update(dict.fromkeys(names, function))
        if not usage:
            _ALONE.add(function)
        HELP.append((" ".join(["/" + " /".join(names), usage]).rstrip(), summary))
        return function

    return register


def is_command(message: str) -> bool:
    """Whether a message is a slash command, or probably a misspelled one.

    ``/tmp is full`` is a message: its first word is not like any command.
    """
    found = _FORM.fullmatch(message)
    return found is not None and (not found[2] or bool(nearest(found[1], COMMANDS)))


def unescape(message: str) -> str:
    """``//word`` is the message ``/word``."""
    return message[1:] if message[:2] == "//" and _FORM.fullmatch(message[1:]) else message


def escape(message: str) -> str:
    """The message as the user would have to type it."""
    return "/" + message if _FORM.fullmatch(message) else message


def run_command(chat: Chat, message: str) -> None:
    """Run ``/name argument``; raises `Leave` to end the chat."""
    found = _FORM.fullmatch(message)
    assert found, message
    name, argument = found[1], (found[2] or "").strip()
    if name.lower() not in COMMANDS:
        hint = f"/help lists the commands; //{name} is a message."
        raise UsageError(f"there is no command /{name}", meant(name, COMMANDS, "/") + hint)
    function = COMMANDS[name.lower()]
    if argument and function in _ALONE:
        hint = f"Type /{name}; //{name} {shortened(argument, 20)} is a message."
        raise UsageError(f"/{name} takes nothing", hint)
    function(chat, argument)
