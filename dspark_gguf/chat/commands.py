"""The slash commands. To add one, write a function with ``@command`` here or in a similar file."""

from __future__ import annotations

import re

from dspark_gguf.chat import files, settable, transcript  # noqa: F401 - their commands
from dspark_gguf.chat.registry import (
    COMMANDS,
    HELP,
    Chat,
    Leave,
    command,
    escape,
    is_command,
    run_command,
    unescape,
)
from dspark_gguf.chat.status import stats_table
from dspark_gguf.errors import UsageError
from dspark_gguf.tally import Tally
from dspark_gguf.visible import shortened

__all__ = ["COMMANDS", "Chat", "Leave", "is_command", "run_command", "unescape"]

#: A fenced code block in Markdown.
_CODE = re.compile(r"^(`{3,}|~{3,}).*\n([\s\S]*?)^\1\s*$", re.MULTILINE)


@command("help", "?", summary="this list")
def _help(chat: Chat, argument: str) -> None:
    chat.screen.table([
        *sorted(HELP),
        ("several lines", 'end a line with \\, or write """ before and after, or paste'),
        ("Tab", "completes commands, settings and file names; Ctrl-X Ctrl-E opens $EDITOR"),
        ("Ctrl-C", "stops an answer and keeps what was said; Ctrl-D leaves"),
        ("//word", "sends a message that begins with /word; paths and comments need one slash"),
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
    text = argument or chat.reader.edited(escape(chat.session.require_message()))
    if not text.strip():
        chat.screen.note("left as it was")
        return
    chat.show(chat.session.edit(unescape(text)))


@command("system", usage="[TEXT|none]", summary="show or set the system prompt")
def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == "none" else argument
    chat.screen.note(f"system prompt: {chat.session.system or 'none'}")


@command("stats", summary="what the last answer and all of them cost, part by part")
def _stats(chat: Chat, argument: str) -> None:
    session = chat.session
    last = session.last.tally if session.last else Tally()
    rows = stats_table(last, session.total, session.summary)
    chat.screen.table([*rows, ("speculation", settable.drafting(chat))])


@command("history", usage="[N]", summary="the conversation, or its last N messages with answers")
def _history(chat: Chat, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise UsageError("/history takes a number", "Type /history or /history 3.")
    chat.session.require_message()
    for line in transcript.last_turns(
        chat.session, int(argument or 0) or len(chat.session.messages)
    ):
        chat.screen.note(line)


@command("copy", usage="[code]", summary="the last answer, or its last code, to the clipboard")
def _copy(chat: Chat, argument: str) -> None:
    if argument not in ("", "code"):
        raise UsageError("/copy takes code or nothing", "Type /copy or /copy code.")
    answers = [each["content"] for each in chat.session.messages if each["role"] == "assistant"]
    codes = [found[2] for found in _CODE.finditer(answers[-1])] if answers else []
    texts = codes if argument == "code" else answers
    if not texts:
        raise UsageError("there is nothing to copy", "Type /copy or /copy code after an answer.")
    if not chat.screen.copy(texts[-1]):
        raise UsageError("only a terminal has a clipboard", "Use /save FILE.")
    chat.screen.note(f"copied {len(texts[-1]):,} characters, if this terminal allows it (OSC 52)")
