"""Saved conversations: readable JSON, whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dspark_gguf.chat.session import Session
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import replacing

FORMAT = "dspark-gguf chat 1"


def save(session: Session, path: Path) -> None:
    """Write the system prompt, the messages and the settings.

    Raises:
        UsageError: the file cannot be written.

    """
    settings = session.settings.model_dump(mode="json")
    record = {
        "format": FORMAT,
        "system": session.system,
        "messages": session.messages,
        "settings": settings,
    }
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False), "utf-8")
    except OSError as error:
        raise UsageError(f"to write {path}", str(error.strerror), "choose another file") from None


def load(session: Session, path: Path) -> None:
    """Go on from a saved conversation. Models and settings stay those of now.

    Raises:
        UsageError: not a saved chat; the session is as it was then.

    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"to read {path}", str(error.strerror), "check the path") from None
    except ValueError as error:
        raise UsageError(f"a saved chat in {path}", f"no JSON ({error})", "check it") from None
    messages = record.get("messages") if isinstance(record, dict) else None
    if not _are_messages(messages):
        raise UsageError(f"a saved chat in {path}", "other JSON", "use a file from /save")
    session.reset()
    session.system = record.get("system") or None
    session.messages = [dict(message) for message in messages]  # type: ignore[union-attr]


def _are_messages(value: Any) -> bool:
    """Whether these are turns of user and assistant, in turn, the user first."""
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and message.get("role") == ("assistant" if k % 2 else "user")
        for k, message in enumerate(value)
    )
