"""Slash commands. To add one: a function with ``@command``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dspark_gguf.chat import transcript
from dspark_gguf.chat.kept import Kept
from dspark_gguf.chat.status import stats_table
from dspark_gguf.chat.terminal import read_text
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_files import plain_yaml

if TYPE_CHECKING:
    from dspark_gguf.chat.loop import Chat


class Leave(Exception):  # noqa: N818 - nothing went wrong
    """The user is done."""


@dataclass(frozen=True, slots=True)
class _Command:
    names: tuple[str, ...]
    usage: str
    summary: str
    function: Callable[[Chat, str], None]


_COMMANDS: dict[str, _Command] = {}

#: A slash and a word. Paths, comments, fractions and a blank after the slash are text.
_FORM = re.compile(r"/(\?|[^\W\d_][\w-]*)(\s.*)?", re.DOTALL)

#: What ``/set`` takes, by section of the settings; `/system` and `/think` have the rest of a chat.
_SETTABLE = {
    "sampling": list(Sampling.model_fields),
    "limits": list(Limits.model_fields),
    "speculation": list(Speculation.model_fields),
    "chat": ["context_shift"],
}


def command(
    *names: str, usage: str = "", summary: str
) -> Callable[[Callable[[Chat, str], None]], Callable[[Chat, str], None]]:
    """Register a slash command under these names."""

    def register(function: Callable[[Chat, str], None]) -> Callable[[Chat, str], None]:
        entry = _Command(names, usage, summary, function)
        _COMMANDS.update(dict.fromkeys(names, entry))
        return function

    return register


def is_command(message: str) -> bool:
    """Whether this is a slash command or, being none that there is, a mistake for one."""
    return _FORM.fullmatch(message) is not None


def run_command(chat: Chat, line: str) -> None:
    """Carry out ``name argument``.

    Raises:
        Leave: the chat ends.
        DSparkError: it could not be done.

    """
    name, *rest = line.split(maxsplit=1)
    entry = _COMMANDS.get(name.lower())
    if entry is None:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean /{near[0]}? " if near else ""
        raise UsageError("a slash command", f"/{name}", f"{hint}/help lists them, //{name} says it")
    entry.function(chat, rest[0].strip() if rest else "")


@command("help", "?", summary="this list")
def _help(chat: Chat, argument: str) -> None:
    rows = []
    for entry in dict.fromkeys(_COMMANDS.values()):
        names = " ".join(f"/{name}" for name in entry.names)
        rows.append((f"{names} {entry.usage}".rstrip(), entry.summary))
    rows += [
        ("several lines", 'end a line with \\, or write """ before and after, or paste'),
        ("Ctrl-C", "stops an answer and keeps what was said; Ctrl-D leaves"),
        ("//word", "a message that begins with /word; paths and comments need no second slash"),
        (
            "in a pipe",
            "each line is a message or a command; the exit code tells of one that failed",
        ),
    ]
    chat.screen.table(rows)


@command("exit", "bye", "quit", summary="leave")
def _exit(chat: Chat, argument: str) -> None:
    raise Leave


@command("reset", "clear", summary="forget the conversation")
def _reset(chat: Chat, argument: str) -> None:
    chat.session.reset()
    chat.screen.note("forgotten")


@command("regen", summary="another answer to the last message")
def _regen(chat: Chat, argument: str) -> None:
    chat.show(chat.session.regenerate())


@command("undo", summary="take back the last message and its answer")
def _undo(chat: Chat, argument: str) -> None:
    chat.screen.note(f"taken back: {_shortened(chat.session.undo())}")


@command("edit", usage="[TEXT]", summary="change the last message and answer it anew")
def _edit(chat: Chat, argument: str) -> None:
    before = chat.session.last_message
    if before is None:
        raise UsageError("an earlier message", "an empty conversation", "say something first")
    text = argument or chat.reader.line("edit> ", default=before)
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
        shown = chat.session.settings.model_dump(
            mode="json", include={section: set(names) for section, names in _SETTABLE.items()}
        )
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
    chat.screen.table(stats_table(chat.session.total, chat.session.outlook))


@command("save", usage="[FILE]", summary="keep this session now, or write it to a JSON file")
def _save(chat: Chat, argument: str) -> None:
    if not argument:
        _keep(chat)
        return
    path = _path(argument, "/save")
    transcript.save(chat.session, path)
    chat.screen.note(f"saved {len(chat.session.messages)} messages to {path}")


def _keep(chat: Chat) -> None:
    """As a session; one without a name gets the time of day as its name."""
    if not chat.session.messages:
        raise UsageError("a conversation to keep", "an empty one", "say something first")
    if chat.kept is None or chat.kept.unnamed:
        named = Kept(f"{datetime.now():%Y-%m-%d-%H%M%S}")
        if chat.kept:
            chat.kept.close()
        chat.kept = named
    how = chat.kept.save(chat.session)
    chat.screen.note(f"kept {how}; `dspark-gguf chat --session {chat.kept.name}` goes on from here")


@command("load", usage="FILE", summary="go on from a saved conversation")
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
        raise UsageError("/think on or /think off", repr(argument), "choose one")
    if not chat.session.pair.template.switches_thinking:
        raise UsageError(
            "a chat template that can switch thinking", "one that cannot", "use another model"
        )
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
    raise UsageError("a setting", repr(key), f"use one of: {every}")


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise UsageError(f"a file after {name}", "none", f"type {name} FILE")
    return Path(os.path.expanduser(argument))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
