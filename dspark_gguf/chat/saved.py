"""Saved sessions: conversations under a name, with the KV caches of their models.

A session is a folder. Only its ``chat.json``, in the format of ``/save FILE``, matters. ``.cache``
files save the time to read the conversation again. One that is missing, damaged, or of models that
``caches.json`` does not name is not used.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from dspark_gguf.chat import transcript
from dspark_gguf.chat.session import Session
from dspark_gguf.engine.state import fingerprint, load_state, save_state, state_bytes
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.paths import (
    GIB,
    MIB,
    checksum,
    data_dir,
    data_path,
    file_errors,
    make_private,
    remove_parts,
    replacing,
    unwritable,
)

#: Limit for the caches of all sessions together; the oldest of other sessions are deleted first.
MAX_BYTES = 8 * GIB
#: What saving a cache leaves free on the disk.
LEAVE_FREE = GIB
#: What reading a damaged record of caches may raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

_NAME = re.compile(r"\w[\w.-]{0,63}")
_CHAT, _CACHES, _LOCK, _HOLDER = "chat.json", "caches.json", "lock", "open-in"


class SavedSession:
    """The folder of a session, locked against other processes until `close`.

    If it is `unnamed`, nobody asked to save it: an empty conversation replaces nothing, and caches
    are not written. A UsageError says that the name is invalid, or the session is open in another
    process; a DSparkError that the folder cannot be written.
    """

    def __init__(self, name: str, unnamed: bool = False) -> None:
        self.name, self.unnamed = name, unnamed
        self.folder = _folder_of(name)
        data_dir("sessions")
        self.path = self.folder / _CHAT
        with _using(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)
        make_private(self.folder)
        self._lock = _lock(self.folder)
        remove_parts(self.folder)
        # What the files hold, and the result of saving the caches.
        self._transcript: dict[str, Any] = {}
        self._cached: dict[str, list[int]] = {}
        self._outcome = "unchanged"

    @classmethod
    def last(cls) -> SavedSession:
        """The session of a chat without a name; each of several at once gets its own."""
        for number in itertools.count(1):
            with contextlib.suppress(UsageError):
                return cls("last" if number == 1 else f"last-{number}", unnamed=True)
        raise AssertionError

    def close(self) -> None:
        """Unlock it."""
        with contextlib.suppress(OSError):
            (self.folder / _HOLDER).unlink()
        self._lock.release()

    def settings(self) -> dict[str, Any]:
        """Models and settings as they were; empty for a new session."""
        settings = self._read().get("settings") if self.path.exists() else None
        return settings if isinstance(settings, dict) else {}

    def restore(self, session: Session) -> str:
        """Continue the saved conversation; returns a line about it, or "" for a new session."""
        if not self.path.exists():
            return ""
        system = session.system  # it is among the settings, where an option may have replaced it
        transcript.resume(session, self._read())
        session.system = system
        with contextlib.suppress(*_DAMAGE):
            _restore_caches(session, self.folder)
        self._cached, self._transcript = _held(session), transcript.record(session)
        tokens = session.pair.target_cache.length
        cached = f", {tokens} tokens in the cache" if tokens else ""
        return f"session {self.name}: {len(session.messages)} messages{cached}"

    def _read(self) -> dict[str, Any]:
        try:
            return transcript.read(self.path)
        except UsageError as error:
            with file_errors("read", self.path):  # a file that can be read is damaged
                self.path.open().close()
            problem = f"the session {self.name} is damaged: {error.problem}"
            hint = f"Delete it with `dspark-gguf sessions rm {self.name}`."
            raise UsageError(problem, hint) from None

    def write(self, session: Session) -> None:
        """Save the transcript if it changed."""
        record = transcript.record(session)
        replaces_nothing = not session.messages and (self.unnamed or not self.path.exists())
        if record != self._transcript and not replaces_nothing:
            transcript.write(record, self.path)
            self._transcript = record

    def save(self, session: Session) -> str:
        """`write`, and also save the caches of a named session; returns the result in words."""
        self.write(session)
        if self.unnamed or not session.messages:
            return ""
        held = _held(session)
        try:
            if held != self._cached:
                self._outcome, self._cached = _save_caches(session, self.folder), held
        except OSError as error:
            return f"saved without its caches: {error.strerror}"
        return self._outcome


class Entry(NamedTuple):
    """A session in the list."""

    name: str
    messages: int | None  # None if they cannot be read
    modified: float  # seconds since 1970
    size: int  # bytes


def list_sessions() -> list[Entry]:
    """All saved sessions, newest first, and any other file that has a session's name."""
    found, folder = [], data_path("sessions")
    with _using(folder):
        places = list(folder.iterdir()) if folder.exists() else []
    for place in places:
        with contextlib.suppress(OSError):  # gone meanwhile
            if _NAME.fullmatch(place.name) and (entry := _entry(place)):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def _entry(folder: Path) -> Entry | None:
    """The list's entry for a file or folder; None for a folder without a chat."""
    messages, modified, size = None, folder.lstat().st_mtime, 0
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:  # a file, a dead link, a folder of somebody else
        return Entry(folder.name, None, modified, folder.lstat().st_size)
    if _CHAT not in names:
        return None
    with contextlib.suppress(DSparkError):
        messages = len(transcript.read(folder / _CHAT)["messages"])
    for name in names:
        with contextlib.suppress(OSError):  # a dead link, or gone meanwhile
            facts = (folder / name).stat()
            size += facts.st_size
            modified = facts.st_mtime if name == _CHAT else modified
    return Entry(folder.name, messages, modified, size)


def delete_session(name: str) -> None:
    """Delete a session; if it is a link, the link alone."""
    folder = _folder_of(name)
    if not os.path.lexists(folder) or not _entry(folder):
        known = ", ".join(entry.name for entry in list_sessions()) or "none"
        raise UsageError(f'there is no session "{name}"', f"Saved sessions: {known}.")
    with _using(folder):
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
            return
        with _lock(folder):
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _LOCK:
                    path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _using(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error, "XDG_DATA_HOME") from None


def _folder_of(name: str) -> Path:
    if not _NAME.fullmatch(name):
        hint = "Use up to 64 letters, digits and . _ -, and begin with a letter or a digit."
        raise UsageError(f"{name!r} is not a session name", hint)
    return data_path("sessions") / name


def _lock(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK, mode=0o600)
    with _using(folder):
        try:
            lock.acquire(timeout=0)
            (folder / _HOLDER).write_text(f"{os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M}")
            make_private(folder / _HOLDER)
        except Timeout:
            problem = f'session "{folder.name}" is open in another process'
            with contextlib.suppress(OSError, UnicodeDecodeError):
                problem += f" ({(folder / _HOLDER).read_text()})"
            raise UsageError(problem, "Close it there or choose another name.") from None
    return lock


def _held(session: Session) -> dict[str, list[int]]:
    return {role: list(cache.tokens) for role, cache in session.pair.caches.items()}


def _save_caches(session: Session, folder: Path) -> str:
    """Write the caches; says how large they are, or why they are left out."""
    caches = {role: cache for role, cache in session.pair.caches.items() if cache.length}
    size = sum(map(state_bytes, caches.values()))
    if not _has_room(folder, size):
        return f"saved without its caches, which would take {size / MIB:.1f} MiB of the disk"
    sums = {}
    for role, cache in caches.items():
        with replacing(folder / f"{role}.cache", private=True) as temporary:
            save_state(cache, temporary)
            sums[role] = checksum(temporary)
    models = {role: fingerprint(cache) for role, cache in session.pair.caches.items()}
    record = {"models": models, "exchange": session.last_exchange, "checksums": sums}
    with replacing(folder / _CACHES, private=True) as temporary:
        temporary.write_text(json.dumps(record), "utf-8")
    return f"saved with its caches, {size / MIB:.1f} MiB"


def _restore_caches(session: Session, folder: Path) -> None:
    """Fill the caches with what belongs to their models."""
    session.decoder  # noqa: B018 - measuring for it would empty the caches later
    caches = session.pair.caches
    ours = {role: fingerprint(cache) for role, cache in caches.items()}
    record = json.loads((folder / _CACHES).read_text("utf-8"))
    theirs, sums, (text, tokens) = record["models"], record["checksums"], record["exchange"]
    n_vocab = session.pair.vocabulary.n_vocab
    if not isinstance(text, str) or not all(0 <= token < n_vocab for token in tokens):
        return
    session.last_exchange = text, [int(token) for token in tokens]
    for role, cache in caches.items():
        path = folder / f"{role}.cache"
        # A draft's cache may be computed from the target's states: the target must match too.
        same = all(theirs.get(one) == ours[one] for one in ("target", role))
        if same and sums.get(role) == checksum(path):
            load_state(cache, path)


def _has_room(folder: Path, size: int) -> bool:
    """Whether `size` bytes fit, after deleting old caches of other sessions."""
    if size > MAX_BYTES or shutil.disk_usage(folder).free < size + LEAVE_FREE:
        return False
    others = []
    for path in folder.parent.glob("*/*.cache"):
        with contextlib.suppress(OSError):  # a dead link, or gone meanwhile
            if path.parent != folder:
                others.append((path.stat().st_mtime, path.stat().st_size, path))
    for _, used, path in sorted(others, reverse=True):
        size += used
        if size > MAX_BYTES:
            path.unlink(missing_ok=True)
    return True
