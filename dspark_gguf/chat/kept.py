"""A conversation kept under a name: the transcript after every turn, the caches at the end.

A session is a folder; its ``chat.json`` is what ``/save FILE`` writes, and all that matters: the
caches beside it only save time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from dspark_gguf.chat import transcript
from dspark_gguf.chat.caches import restore_caches, save_caches
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.shelf import CHAT, folder_of, locked
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import make_private, remove_parts, unwritable

#: Where a chat without a name is kept.
LAST = "last"


class Kept:
    """A session's folder, ours alone until `close`.

    Args:
        name: of the session.
        unnamed: it keeps what nobody asked to keep: an empty conversation replaces nothing.

    Raises:
        UsageError: a name that is none, or a session that another process is in.
        DSparkError: the folder cannot be written.

    """

    def __init__(self, name: str, unnamed: bool = False) -> None:
        self.name, self.unnamed = name, unnamed
        self.folder = folder_of(name)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from None
        make_private(self.folder)
        self.path = self.folder / CHAT
        self._lock = locked(self.folder)
        self._written: dict[str, Any] = {}
        self._cached: dict[str, list[int]] = {}
        self._how = "as it was"
        remove_parts(self.folder)

    @classmethod
    def last(cls) -> Kept:
        """The place of a chat without a name; of several at once, each has its own.

        Raises:
            DSparkError: the folder cannot be written.

        """
        number = 1
        while True:
            try:
                return cls(LAST if number == 1 else f"{LAST}-{number}", unnamed=True)
            except UsageError:
                number += 1

    def close(self) -> None:
        """Let others in."""
        self._lock.release()

    def settings(self) -> dict[str, Any]:
        """Models and settings as they were; empty for a new session.

        Raises:
            UsageError: the transcript is damaged.

        """
        if not self.path.exists():
            return {}
        settings = transcript.read(self.path).get("settings")
        return settings if isinstance(settings, dict) else {}

    def restore(self, session: Session) -> str:
        """Go on from what was kept; returns what that is, in words, or nothing for a new one.

        Raises:
            UsageError: the transcript is damaged.

        """
        if not self.path.exists():
            return ""
        system = session.system  # it is among the settings, where an option may have replaced it
        transcript.load(session, self.path)
        session.system = system
        restore_caches(session, self.folder)
        self._cached, self._written = _held(session), transcript.record(session)
        tokens = session.pair.target_cache.length
        return f"session {self.name}: {len(session.messages)} messages" + (
            f", {tokens} tokens of them in the cache" if tokens else ""
        )

    def write(self, session: Session) -> None:
        """Keep the transcript, if it is not kept already.

        Raises:
            UsageError: it cannot be written.

        """
        record = transcript.record(session)
        replaces_nothing = not session.messages and (self.unnamed or not self.path.exists())
        if record != self._written and not replaces_nothing:
            transcript.write(record, self.path)
            self._written = record

    def save(self, session: Session) -> str:
        """Keep the transcript and, for a session with a name, the caches; says what that took.

        Raises:
            UsageError: the transcript cannot be written.

        """
        self.write(session)
        if self.unnamed or not session.messages:
            return ""
        held = _held(session)
        try:
            if held != self._cached:
                self._how, self._cached = save_caches(session, self.folder), held
        except OSError as error:
            return f"without its caches: {error.strerror}"
        return self._how


def _held(session: Session) -> dict[str, list[int]]:
    return {role: list(cache.tokens) for role, cache in session.pair.caches.items()}


def anchored(settings: Settings) -> Settings:
    """The settings with absolute paths, so that a session goes on from any folder."""

    def absolute(value: str | None) -> str | None:
        path = Path(value).expanduser() if value else None
        with contextlib.suppress(OSError):
            return str(path.resolve()) if path and path.exists() else value
        return value  # a template's text is no name of a file

    chat, speculation = settings.chat, settings.speculation
    return settings.model_copy(
        update={
            "model": absolute(settings.model),
            "draft": absolute(settings.draft),
            "chat": chat.model_copy(update={"chat_template": absolute(chat.chat_template)}),
            "speculation": speculation.model_copy(
                update={"lookup_store": absolute(speculation.lookup_store)}
            ),
        }
    )
