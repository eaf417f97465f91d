"""Text on stdin: read if it was meant for this command, and never waited for silently.

If an argument or a file already gives a prompt, a pipe may hold text that belongs to it
(``git diff | dspark-gguf run "Write a commit message."``, as with `llm` and `mods`), the next lines
of a loop that calls us (``while read q; do dspark-gguf run "$q"; done``), or nothing, forever (a
service, ssh). The other processes that hold the pipe tell these cases apart.
"""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path

from dspark_gguf.chat.terminal import PATIENCE, Screen, decode_text, note_on_wait, read_text
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import GIB, file_errors, read_whole

#: Programs that are shells: sh, bash, zsh, fish ...
_SHELL = re.compile(r"([a-z]*sh|busybox)\b")

#: The file name that means stdin.
DASH = "-"


class StdinSource(Enum):
    """Who writes to stdin, and so what to do with it if there already is a prompt."""

    PIPELINE = "another command, or a file: read it to the end, however long that takes"
    PROGRAM = "the program that called us, which may have nothing to say: wait a moment"
    SHELL = "the input of the shell that called us: leave it alone"


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt from a file, stdin and the argument; ``-`` means stdin in both.

    A question comes after the text that it is about: `cat main.c | dspark-gguf run "What is
    wrong?"`. The module docstring says when stdin is read without ``-``. A prompt of nothing but
    white space, an unreadable file, and text that is not UTF-8 are UsageErrors.
    """
    given = [str(each) for each in (file, argument) if each is not None]
    parts = []
    if file is not None and str(file) != DASH:
        parts.append(read_text(file))
    asked = DASH in given or not (given or sys.stdin.isatty())
    parts.append(decode_text(_read_all() if asked else _read_beside_prompt(), "stdin"))
    if argument is not None and argument != DASH:
        parts.append(decode_text(argument.encode("utf-8", "surrogateescape"), "the argument"))
    said = [part for part in parts if part.strip()]
    if not said:
        hint = "Give it as an argument, with -f FILE or on stdin."
        raise UsageError("there is no prompt", hint)
    # Parts are joined like paragraphs; a part alone stays as it is, to the last newline.
    return said[0] if len(said) == 1 else "\n\n".join(part.strip("\n") for part in said)


def read_file(path: Path) -> str:
    """The text of a UTF-8 file, or of stdin for ``-``; a UsageError if it cannot be read."""
    return decode_text(_read_all(), "stdin") if str(path) == DASH else read_text(path)


def _read_all() -> bytes:
    with note_on_wait("waiting for text on stdin"):
        first = sys.stdin.buffer.read(1)
    with file_errors("read", Path("stdin"), "Give less of it."):
        return first + read_whole(sys.stdin.buffer, GIB)


def _read_beside_prompt() -> bytes:
    """What stdin adds to the prompt; a note says so if it is not read."""
    if sys.stdin.isatty():
        return b""
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # not the process's own
        return _read_all()
    source, note = _source_of(number), ""
    if source is StdinSource.SHELL:
        if _holds_more(number):
            note = "stdin belongs to the calling shell and was not read; `-f -` reads it"
    elif source is StdinSource.PIPELINE or select.select([number], [], [], PATIENCE)[0]:
        return _read_all()
    else:
        note = f"no input on stdin for {PATIENCE:.0f} seconds: continuing without; `-f -` waits"
    if note:
        Screen().note(f"note: {note}")
    return b""


def _source_of(number: int) -> StdinSource:
    """Who writes to a file descriptor that we read.

    Only Linux tells who holds a pipe; elsewhere every pipe counts as a pipeline's.
    """
    facts = os.fstat(number)
    if stat.S_ISREG(facts.st_mode):
        # Whoever calls us with a file in the middle has read the first part.
        return StdinSource.SHELL if os.lseek(number, 0, os.SEEK_CUR) else StdinSource.PIPELINE
    if stat.S_ISSOCK(facts.st_mode):
        return StdinSource.PROGRAM
    if stat.S_ISFIFO(facts.st_mode):
        with suppress(OSError):  # no Linux, or a process that we may not look at
            return _source_of_pipe(facts)
    return StdinSource.PIPELINE


def _source_of_pipe(pipe: os.stat_result) -> StdinSource:
    parent = process = Path("/proc", str(os.getppid()))
    # Between the shell and us there may be others with the same stdin: timeout, sudo, uv run.
    while _is(process / "fd" / "0", pipe):
        if _SHELL.match((process / "exe").readlink().name):
            return StdinSource.SHELL
        facts = (process / "stat").read_bytes().rpartition(b")")[2].split()
        process = Path("/proc", str(int(facts[1])))
    ends = (end for end in (parent / "fd").iterdir() if _is(end, pipe))
    writes = any(end.lstat().st_mode & stat.S_IWUSR for end in ends)
    return StdinSource.PROGRAM if writes else StdinSource.PIPELINE


def _is(link: Path, pipe: os.stat_result) -> bool:
    with suppress(OSError):
        return os.path.samestat(link.stat(), pipe)
    return False


def _holds_more(number: int) -> bool:
    """Whether there is anything to read right now."""
    facts = os.fstat(number)
    if stat.S_ISREG(facts.st_mode):
        return os.lseek(number, 0, os.SEEK_CUR) < facts.st_size
    import fcntl
    import termios

    return any(fcntl.ioctl(number, termios.FIONREAD, bytes(4)))
