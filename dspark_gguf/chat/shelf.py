"""The folders of kept conversations: their names, who is in them, the list of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dspark_gguf.chat import transcript
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.paths import data_dir, unwritable

CHAT = "chat.json"
_NAME = re.compile(r"\w[\w.-]{0,63}")
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Entry:
    """A session in the list.

    Attributes:
        name: of it.
        messages: in its transcript, or None where that cannot be read.
        modified: when it was last written, in seconds since 1970.
        size: bytes on the disk.

    """

    name: str
    messages: int | None
    modified: float
    size: int


def sessions() -> list[Entry]:
    """All that are kept, the newest first."""
    found = []
    for path in data_dir("sessions").glob(f"*/{CHAT}"):
        try:
            messages = len(transcript.read(path)["messages"])
        except DSparkError:
            messages = None
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        found.append(Entry(path.parent.name, messages, path.stat().st_mtime, size))
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def forget(name: str) -> None:
    """Delete a session.

    Raises:
        UsageError: there is none of this name, or a process is in it.

    """
    folder = folder_of(name)
    if not (folder / CHAT).exists():
        known = ", ".join(entry.name for entry in sessions()) or "none"
        raise UsageError("the name of a session", repr(name), f"there are: {known}")
    with locked(folder):
        for path in folder.iterdir():
            if path.name != _LOCK:
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def folder_of(name: str) -> Path:
    """Where a session is kept.

    Raises:
        UsageError: a name that is none.

    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a session name of up to 64 letters, digits, and . _ - after the first",
            repr(name),
            "choose another name",
        )
    return data_dir("sessions") / name


def locked(folder: Path) -> FileLock:
    """A lock that we hold on an existing folder.

    Raises:
        UsageError: another process holds it.
        DSparkError: the folder cannot be written.

    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            "a session that nobody is in",
            f"{folder.name}, open in another process",
            "close that one or choose another name",
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from None
    return lock
