"""Saved conversations: readable JSON, whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import replacing

if TYPE_CHECKING:
    from dspark_gguf.chat.session import Session

FORMAT = "dspark-gguf chat 1"


def record(session: Session) -> dict[str, Any]:
    """The system prompt, the messages and the settings, as plain values."""
    settings = session.settings.model_dump(mode="json")
    settings["chat"]["system"] = session.system
    return {
        "format": FORMAT,
        "system": session.system,
        "messages": [dict(message) for message in session.messages],
        "answers": session.answers,
        "settings": settings,
    }


def save(session: Session, path: Path) -> None:
    """Write the conversation.

    Raises:
        UsageError: the file cannot be written.

    """
    write(record(session), path)


def write(values: dict[str, Any], path: Path) -> None:
    """Write what `record` gave.

    Raises:
        UsageError: the file cannot be written.

    """
    try:
        with replacing(path, private=True) as temporary:
            text = json.dumps(values, indent=2, ensure_ascii=False)
            # Half a surrogate pair, typed or pasted, has no UTF-8, but JSON has an escape for it.
            temporary.write_text(text, "utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"to write {path}", str(error.strerror), "choose another file") from None


def load(session: Session, path: Path) -> None:
    """Go on from a saved conversation. Models and settings stay those of now.

    Raises:
        UsageError: not a saved chat; the session is as it was then.

    """
    values = read(path)
    session.reset()
    session.system = values["system"]
    session.messages = values["messages"]
    session.answers = values["answers"]


def read(path: Path) -> dict[str, Any]:
    """What a file of `save` says: its conversation checked, the rest as it is.

    Raises:
        UsageError: not a saved chat.

    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"to read {path}", str(error.strerror), "check the path") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"a saved chat in {path}", f"no JSON ({error})", "check it") from None
    messages = values.get("messages") if isinstance(values, dict) else None
    system = values.get("system") if isinstance(values, dict) else None
    if not _are_messages(messages) or not isinstance(system, str | None):
        raise UsageError(f"a saved chat in {path}", "other JSON", "use a file from /save")
    answers = values.get("answers")
    if type(answers) is not int or answers < 0:
        answers = len(values["messages"]) // 2
    return {**values, "system": system or None, "answers": answers}


def _are_messages(value: Any) -> bool:
    """Whether these are turns of user and assistant, in turn, the user first."""
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and all(isinstance(part, str) for part in message.values())
        and "content" in message
        and message.get("role") == ("assistant" if k % 2 else "user")
        for k, message in enumerate(value)
    )
