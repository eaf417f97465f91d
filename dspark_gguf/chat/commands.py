"""Slash commands. To add one: a function with ``@command``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import yaml

from dspark_gguf.chat import transcript
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Answering, Session
from dspark_gguf.chat.status import stats_table
from dspark_gguf.chat.terminal import Reader, Screen, read_text
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import plain_yaml
from dspark_gguf.visible import shortened


class Chat(Protocol):
    """What commands work on: see `loop.Chat`."""

    session: Session
    screen: Screen
    reader: Reader
    saved: SavedSession | None
    attached: list[str]

    def show(self, rounds: Answering) -> None:
        """Stream an answer, then its status line."""


class Leave(Exception):  # noqa: N818 - nothing went wrong
    """The user is done."""


_Function = Callable[[Chat, str], None]

_COMMANDS: dict[str, _Function] = {}
#: What ``/help`` shows.
_HELP: list[tuple[str, str]] = []

#: A slash and a word, and what is behind it. Paths, comments and fractions are text.
_FORM = re.compile(r"/(\?|[^\W\d_][\w-]*)(?:\s+(.*))?", re.DOTALL)

#: What ``/set`` takes, by section of the settings; `/system` and `/think` have the rest of a chat.
_SETTABLE = {
    "sampling": list(Sampling.model_fields),
    "limits": list(Limits.model_fields),
    "speculation": list(Speculation.model_fields),
    "chat": ["context_shift"],
}


def command(*names: str, usage: str = "", summary: str) -> Callable[[_Function], _Function]:
    """Register a slash command under these names."""

    def register(function: _Function) -> _Function:
        _COMMANDS.update(dict.fromkeys(names, function))
        _HELP.append((" ".join(["/" + " /".join(names), usage]).rstrip(), summary))
        return function

    return register


def is_command(message: str) -> bool:
    """Whether a message is a slash command, or probably a mistake for one.

    ``/tmp is full`` is a message: its first word is not like any command.
    """
    found = _FORM.fullmatch(message)
    return found is not None and (not found[2] or bool(_nearest(found[1])))


def unescape(message: str) -> str:
    """``//word`` is the message ``/word``."""
    return message[1:] if message[:2] == "//" and _FORM.fullmatch(message[1:]) else message


def run_command(chat: Chat, message: str) -> None:
    """Carry out ``/name argument``; raises `Leave` at the end of the chat."""
    found = _FORM.fullmatch(message)
    assert found, message
    name, argument = found[1], (found[2] or "").strip()
    if name.lower() not in _COMMANDS:
        near = _nearest(name)
        hint = f"Did you mean /{near}? " if near else ""
        hint += f"/help lists the commands; //{name} is a message."
        raise UsageError(f"there is no command /{name}", hint)
    _COMMANDS[name.lower()](chat, argument)


def _nearest(name: str) -> str | None:
    """The command of this name, one that it abbreviates, or one that is spelled alike."""
    name = name.lower()
    begun = [known for known in _COMMANDS if known.startswith(name)]
    alike = difflib.get_close_matches(name, _COMMANDS, n=1, cutoff=0.7)
    return next(iter([*begun, *alike]), None)


@command("help", "?", summary="this list")
def _help(chat: Chat, argument: str) -> None:
    chat.screen.table([
        *_HELP,
        ("several lines", 'end a line with \\, or write """ before and after, or paste'),
        ("Ctrl-C", "stops an answer and keeps what was said; Ctrl-D leaves"),
        ("//word", "a message that begins with /word; paths and comments need no second slash"),
        ("in a pipe", "each line is a message or a command; if one fails, the exit code says so"),
    ])  # fmt: skip


@command("exit", "bye", "quit", summary="leave")
def _exit(chat: Chat, argument: str) -> None:
    raise Leave


@command("reset", "clear", summary="forget the conversation")
def _reset(chat: Chat, argument: str) -> None:
    chat.session.reset()
    chat.screen.note("forgotten")


@command("regen", summary="another answer to the last message")
def _regen(chat: Chat, argument: str) -> None:
    chat.show(chat.session.reply())


@command("undo", summary="take back the last message and its answer")
def _undo(chat: Chat, argument: str) -> None:
    chat.screen.note("taken back: " + shortened(" ".join(chat.session.undo().split())))


@command("edit", usage="[TEXT]", summary="change the last message and answer it again")
def _edit(chat: Chat, argument: str) -> None:
    text = argument or chat.reader.line("edit> ", default=chat.session.require_message())
    if text.strip():
        chat.show(chat.session.edit(text))


@command("system", usage="[TEXT|none]", summary="show or set the system prompt")
def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == "none" else argument
    chat.screen.note(f"system prompt: {chat.session.system or 'none'}")


@command("set", usage="[KEY VALUE]", summary="show the settings, or change one")
def _set(chat: Chat, argument: str) -> None:
    if not argument:
        wanted = {section: set(names) for section, names in _SETTABLE.items()}
        shown = chat.session.settings.model_dump(mode="json", include=wanted)
        for line in yaml.safe_dump(shown, sort_keys=False).splitlines():
            chat.screen.note(line)
        return
    key, _, value = argument.partition(" ")
    section, name = _section(key)
    try:
        parsed = plain_yaml(value)
    except ValueError:
        parsed = value
    chat.session.update({section: {name: parsed}})
    now = getattr(getattr(chat.session.settings, section), name)
    chat.screen.note(f"{name}: {now}")


@command("stats", summary="what the session cost, part by part")
def _stats(chat: Chat, argument: str) -> None:
    chat.screen.table(stats_table(chat.session.total, chat.session.summary))


@command("save", usage="[FILE]", summary="save this session now, or write it to a JSON file")
def _save(chat: Chat, argument: str) -> None:
    if argument:
        path = _path(argument, "/save")
        transcript.write(transcript.record(chat.session), path)
        chat.screen.note(f"saved {len(chat.session.messages)} messages to {path}")
        return
    chat.session.require_message()
    if chat.saved is None or chat.saved.unnamed:  # then the time of day becomes its name
        named = SavedSession(f"{datetime.now():%Y-%m-%d-%H%M%S}")
        if chat.saved:
            chat.saved.close()
        chat.saved = named
    how = chat.saved.save(chat.session)
    chat.screen.note(f"saved {how}; resume with `dspark-gguf chat --session {chat.saved.name}`")


@command("load", usage="FILE", summary="continue a saved conversation")
def _load(chat: Chat, argument: str) -> None:
    path = _path(argument, "/load")
    transcript.load(chat.session, path)
    chat.screen.note(f"loaded {len(chat.session.messages)} messages from {path}")


@command("read", usage="FILE", summary="add a text file to the next message")
def _read(chat: Chat, argument: str) -> None:
    path = _path(argument, "/read")
    text = read_text(path)
    chat.attached.append(text)
    chat.screen.note(f"{len(text)} characters of {path} go with your next message")


@command("think", usage="on|off", summary="thinking, for models that can switch it")
def _think(chat: Chat, argument: str) -> None:
    if argument not in ("on", "off"):
        raise UsageError("/think takes on or off", "Type /think on or /think off.")
    if not chat.session.pair.template.switches_thinking:
        problem = "the chat template of this model cannot switch thinking"
        raise UsageError(problem, "Use another model.")
    chat.session.update({"chat": {"think": argument == "on"}})
    chat.screen.note(f"thinking {argument}")


@command("spec", usage="on|off|auto", summary="speculative decoding")
def _spec(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.update({"speculation": {"mode": argument}})
        chat.session.decoder  # noqa: B018 - loads the draft now, not with the next answer
    chat.screen.note(chat.session.pair.summary(chat.session.settings.speculation))


def _section(key: str) -> tuple[str, str]:
    section, _, name = key.rpartition(".")
    for known, names in _SETTABLE.items():
        if section in ("", known) and name in names:
            return known, name
    every = ", ".join(name for names in _SETTABLE.values() for name in names)
    raise UsageError(f"there is no setting {key!r}", f"Use one of: {every}.")


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise UsageError(f"{name} needs a file", f"Type {name} FILE.")
    return Path(os.path.expanduser(argument))
