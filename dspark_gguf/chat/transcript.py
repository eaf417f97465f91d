"""Saved conversations: readable JSON, whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from dspark_gguf.chat.session import Session
from dspark_gguf.chat.terminal import PROMPT, read_text
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import file_errors, replacing
from dspark_gguf.visible import shortened

#: Limits for a message that is shown when a conversation is resumed: lines and characters.
_SHOWN_LINES, _SHOWN = 8, 600
FORMAT = "dspark-gguf chat 1"
#: Settings that may name a file: section and field.
_FILES = (
    ("", "model"), ("", "draft"), ("chat", "chat_template"), ("speculation", "lookup_store"),
    ("sampling", "grammar"), ("sampling", "json_schema"),
)  # fmt: skip


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


def write(values: dict[str, Any], path: Path) -> None:
    """Write what `record` returned to a file; a UsageError if that fails."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    replaced = replacing(path, private=True)
    with file_errors("write", path, "Choose another file."), replaced as temporary:
        # Half a surrogate pair, typed or pasted, has no UTF-8, but JSON has an escape for it.
        temporary.write_text(text, "utf-8", errors="backslashreplace")


def load(session: Session, path: Path) -> None:
    """Continue a saved conversation. Models and settings stay as they are."""
    resume(session, read(path))


def resume(session: Session, values: dict[str, Any]) -> None:
    """Continue the conversation that `read` returned."""
    session.reset()
    session.system = values["system"]
    session.messages = values["messages"]
    session.answers = values["answers"]


def last_turns(session: Session, count: int, short: bool = False) -> list[str]:
    """The user's last `count` messages, each after a ``>>>``, and their answers; cut if `short`."""
    starts = [k for k, each in enumerate(session.messages) if each["role"] == "user"][-count:]
    texts = [
        PROMPT * (each["role"] == "user") + each["content"].rstrip()
        for each in session.messages[starts[0] if starts else 0 :]
    ]
    return [_beginning(text) for text in texts] if short else texts


def _beginning(text: str) -> str:
    lines = text.splitlines()
    shown = shortened("\n".join(lines[:_SHOWN_LINES]), most=_SHOWN)
    return shown + "\n…" * (len(lines) > _SHOWN_LINES and not shown.endswith("…"))


def read(path: Path) -> dict[str, Any]:
    """The content of a saved chat; a UsageError if it is something else."""
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error})", "Choose a file from /save.") from None
    values = values if isinstance(values, dict) else {}
    messages, system, answers = map(values.get, ("messages", "system", "answers"))
    if not _are_messages(messages) or not isinstance(system, str | None):
        raise UsageError(f"{path} is not a saved chat", "Choose a file from /save.")
    if type(answers) is not int or answers < 0:
        answers = len(values["messages"]) // 2
    return {**values, "system": system or None, "answers": answers}


def _are_messages(value: Any) -> bool:
    """Whether user and assistant take turns, the user first."""
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and all(isinstance(part, str) for part in message.values())
        and "content" in message
        and message.get("role") == ("assistant" if k % 2 else "user")
        for k, message in enumerate(value)
    )


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with absolute paths, so that a session continues from any folder."""
    tree = settings.model_dump()
    for section, name in _FILES:
        part = tree[section] if section else tree
        path = Path(os.path.expanduser(part[name] or ""))
        with contextlib.suppress(OSError):  # the text of a grammar is too long for a name
            if part[name] and path.exists():
                part[name] = str(path.resolve())
    return Settings.model_validate(tree)
