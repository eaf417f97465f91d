"""Slash commands that read and write files."""

from __future__ import annotations

import glob
import os
import re
import shlex
from datetime import datetime
from pathlib import Path

from dspark_gguf.chat import transcript
from dspark_gguf.chat.registry import Chat, command
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.terminal import read_text
from dspark_gguf.errors import UsageError
from dspark_gguf.visible import counted

#: Tokens that a chat template adds to each message, roughly.
_AROUND = 8


@command("save", usage="[FILE]", summary="save this session now, or write it to a JSON file")
def _save(chat: Chat, argument: str) -> None:
    if argument:
        path = _path(argument, "/save")
        if path.exists() and not chat.reader.agreed(f"{path} exists. Replace it?"):
            chat.screen.note("not saved")
            return
        transcript.write(transcript.record(chat.session), path)
        chat.screen.note(f"saved {counted(len(chat.session.messages), 'message')} to {path}")
        return
    chat.session.require_message()
    if chat.saved is None or chat.saved.unnamed:  # then the time of day becomes its name
        named = SavedSession(f"{datetime.now():%Y-%m-%d-%H%M%S}")
        if chat.saved:
            chat.saved.close()
        chat.saved = named
    how = chat.saved.save(chat.session)
    chat.screen.note(f"{how}; resume with `dspark-gguf chat --session {chat.saved.name}`")


@command("load", usage="FILE", summary="continue a saved conversation")
def _load(chat: Chat, argument: str) -> None:
    path = _path(argument, "/load")
    transcript.load(chat.session, path)
    for line in transcript.last_turns(chat.session, 1, short=True):
        chat.screen.note(line)
    chat.screen.note(f"loaded {counted(len(chat.session.messages), 'message')} from {path}")


@command("read", usage="FILE...|none", summary="add text files to the next message, or take "
         'them back; names with blanks "in quotes", *.py for many')  # fmt: skip
def _read(chat: Chat, argument: str) -> None:
    if argument == "none":
        chat.attached.clear()
        chat.screen.note("no files are attached to your next message")
        return
    paths = _paths(argument)
    blocks = [fenced(str(path), read_text(path)) for path in paths]
    count = sum(_tokens(chat.session, block) for block in blocks)
    size = chat.session.pair.target_cache.n_ctx
    names = ", ".join(map(str, paths))
    if count >= size:
        problem = f"{names}: {counted(count, 'token')}, more than the context, which has {size:,}"
        raise UsageError(problem, "Read less, or start with a larger --ctx-size.")
    chat.attached += blocks
    said = [message["content"] for message in chat.session.messages]
    used = sum(_tokens(chat.session, text) + _AROUND for text in (*said, *chat.attached))
    chat.screen.note(f"{names}: {counted(count, 'token')}, with your next message; "
                     f"about {max(0, size - used):,} of {size:,} are left")  # fmt: skip
    if used >= size:
        chat.screen.note("that is too much: /read none takes it back, /reset makes room")


def fenced(name: str, text: str) -> str:
    """A file's name and text as a code block, whose fence is longer than any fence in the text."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{name}:\n{fence}\n{text.rstrip()}\n{fence}"


def _tokens(session: Session, text: str) -> int:
    return len(session.pair.vocabulary.tokenize(text, add_bos=False))


def _paths(argument: str) -> list[Path]:
    """The files meant by `argument`: one path with spaces, or several, quoted or with wildcards."""
    whole = _path(argument, "/read")
    if whole.exists():
        return [whole]
    try:
        words = shlex.split(argument, posix=os.name != "nt")
    except ValueError:
        hint = 'Write /read "the file.txt".'
        raise UsageError(f"a quote is not closed in {argument}", hint) from None
    found: list[Path] = []
    for word in words:
        path = Path(os.path.expanduser(word.strip("\"'")))
        many = sorted(glob.glob(str(path), recursive=True)) if not path.exists() else []
        found += [each for each in map(Path, many) if each.is_file()] or [path]
    return found


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise UsageError(f"{name} needs a file", f"Type {name} FILE.")
    return Path(os.path.expanduser(argument))
