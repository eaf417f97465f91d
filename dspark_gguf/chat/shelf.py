"""The folders of kept conversations: their names, who is in them, the list of them."""

from __future__ import annotations

import contextlib
import os
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
    """All that are kept, the newest first, and what is in the place of one.

    Raises:
        DSparkError: the folder of all cannot be used.

    """
    found, shelf = [], data_dir("sessions")
    try:
        folders = list(shelf.iterdir())
    except OSError as error:
        raise unwritable(shelf, error) from None
    for folder in folders:
        with contextlib.suppress(OSError):  # gone meanwhile
            if _NAME.fullmatch(folder.name) and (entry := _entry(folder)):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def _entry(folder: Path) -> Entry | None:
    """What is in the place of a session, whatever it is; None for a folder without a chat."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:  # a file, a dead link, a folder of somebody else
        return Entry(folder.name, None, folder.lstat().st_mtime, folder.lstat().st_size)
    if CHAT not in names:
        return None
    messages, modified, size = None, folder.lstat().st_mtime, 0
    with contextlib.suppress(DSparkError):
        messages = len(transcript.read(folder / CHAT)["messages"])
    for name in names:
        with contextlib.suppress(OSError):  # a dead link, or gone meanwhile
            facts = (folder / name).stat()
            size += facts.st_size
            modified = facts.st_mtime if name == CHAT else modified
    return Entry(folder.name, messages, modified, size)


def forget(name: str) -> None:
    """Delete a session; of a link to one, the link alone.

    Raises:
        UsageError: there is none of this name, or a process is in it.
        DSparkError: it cannot be deleted.

    """
    folder = folder_of(name)
    if not os.path.lexists(folder) or not _entry(folder):
        known = ", ".join(entry.name for entry in sessions()) or "none"
        raise UsageError("the name of a session", repr(name), f"there are: {known}")
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
            return
        with locked(folder):
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
    except OSError as error:
        raise unwritable(folder, error) from None
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
