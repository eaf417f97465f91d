"""Slash commands by name: what is one, what was probably meant to be one, and what runs it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Protocol

from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Answering, Session
from dspark_gguf.chat.terminal import Reader, Screen
from dspark_gguf.errors import UsageError


class Chat(Protocol):
    """What commands work on: see `loop.Chat`."""

    session: Session
    screen: Screen
    reader: Reader
    saved: SavedSession | None
    attached: list[str]

    def show(self, rounds: Answering) -> None:
        """Stream an answer, then its status line."""

    def switch(self, model: str, draft: str | None) -> None:
        """Go on with other models."""


class Leave(Exception):  # noqa: N818 - nothing went wrong
    """The user is done."""


_Function = Callable[[Chat, str], None]

COMMANDS: dict[str, _Function] = {}
#: What ``/help`` shows.
HELP: list[tuple[str, str]] = []

#: A slash and a word, and what is behind it. Paths, comments and fractions are text.
_FORM = re.compile(r"/(\?|[^\W\d_][\w-]*)(?:\s+(.*))?", re.DOTALL)


def command(*names: str, usage: str = "", summary: str) -> Callable[[_Function], _Function]:
    """Register a slash command under these names."""

    def register(function: _Function) -> _Function:
        COMMANDS.update(dict.fromkeys(names, function))
        HELP.append((" ".join(["/" + " /".join(names), usage]).rstrip(), summary))
        return function

    return register


def is_command(message: str) -> bool:
    """Whether a message is a slash command, or probably a mistake for one.

    ``/tmp is full`` is a message: its first word is not like any command.
    """
    found = _FORM.fullmatch(message)
    return found is not None and (not found[2] or bool(nearest(found[1], COMMANDS)))


def unescape(message: str) -> str:
    """``//word`` is the message ``/word``."""
    return message[1:] if message[:2] == "//" and _FORM.fullmatch(message[1:]) else message


def escape(message: str) -> str:
    """A message as it has to be typed."""
    return "/" + message if _FORM.fullmatch(message) else message


def run_command(chat: Chat, message: str) -> None:
    """Carry out ``/name argument``; raises `Leave` at the end of the chat."""
    found = _FORM.fullmatch(message)
    assert found, message
    name, argument = found[1], (found[2] or "").strip()
    if name.lower() not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"Did you mean /{near}? " if near else ""
        hint += f"/help lists the commands; //{name} is a message."
        raise UsageError(f"there is no command /{name}", hint)
    COMMANDS[name.lower()](chat, argument)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that this one abbreviates, or one that is spelled alike."""
    name, known = name.lower(), list(known)
    begun = [each for each in known if each.startswith(name)]
    alike = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return next(iter([*begun, *alike]), None)
