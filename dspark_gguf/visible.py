"""Foreign text made safe for a terminal: answers, file names, metadata, prompts, llama.cpp's log.

A terminal acts on control characters: it moves the cursor, sets the title or the clipboard, or
answers as if somebody had typed. What a model says and what a file is called must only be shown.
Each character is judged alone, so a sequence that is split over tokens is no other case.
"""

from __future__ import annotations

import json
import re
from typing import Any, TextIO

#: C0 but tab and newline, DEL, C1; what turns the direction of the text around it, so that a line
#: would show something else than it says; and bytes of file names that are no text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Without what a terminal would act on: for an answer, which stays readable."""
    return _CONTROL.sub("", text)


def visible(text: str) -> str:
    r"""With ``\u001b`` in the place of what a terminal would act on: for names and messages."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_json(value: Any, stream: TextIO | None = None) -> str:
    """One line of JSON that a terminal may show; it reads back as `value`.

    Args:
        value: plain values.
        stream: where it will be written; what its encoding lacks is escaped.

    """
    line = visible(json.dumps(value, ensure_ascii=False))
    try:
        line.encode((stream and stream.encoding) or "utf-8")
    except UnicodeEncodeError:
        return visible(json.dumps(value))
    return line
