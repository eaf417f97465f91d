"""What Tab completes in the chat: commands, settings with their values, and file names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from dspark_gguf.chat.registry import COMMANDS
from dspark_gguf.chat.settable import SETTABLE
from dspark_gguf.config import Settings

#: Commands that take one of a few words, and those that take files.
_WORDS = {
    "/spec": ("on", "off", "auto"), "/think": ("on", "off"), "/copy": ("code",),
    "/system": ("none",),
}  # fmt: skip
_FILES = ("/read", "/load", "/save", "/model")


class SlashCompleter(Completer):
    """Completes the last word of a slash command."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """As prompt_toolkit asks for them."""
        *before, word = document.text_before_cursor.split(" ")
        if before and before[0] in _FILES:
            yield from self._files.get_completions(Document(word), complete_event)
            return
        for each in _fitting(before, word):
            if each.startswith(word):
                yield Completion(each, start_position=-len(word))


def _fitting(before: list[str], word: str) -> Iterator[str]:
    """Words that can follow these."""
    if not before:
        yield from (f"/{name}" for name in sorted(COMMANDS) if word.startswith("/"))
    elif before == ["/set"]:
        yield from sorted(name for names in SETTABLE.values() for name in names)
    elif before[0] == "/set" and len(before) == 2:
        yield from ("default", *_values(before[1]))
    elif len(before) == 1:
        yield from _WORDS.get(before[0], ())


def _values(name: str) -> Iterator[str]:
    """The values of a setting that has few."""
    for section, names in SETTABLE.items():
        if name in names:
            kind = type(getattr(Settings(), section)).model_fields[name].annotation
            yield from ("on", "off") if kind is bool else filter(_is_text, get_args(kind))


def _is_text(value: object) -> bool:
    return isinstance(value, str)
