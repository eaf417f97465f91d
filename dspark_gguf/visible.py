"""Make text safe for a terminal: answers, file names, metadata, prompts, llama.cpp's log.

A terminal acts on control characters: it moves the cursor, sets the title or the clipboard, or
replies as if the user had typed. Each character is handled on its own, so it does not matter how a
sequence is split into tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

#: C0 except tab and newline, DEL, C1; bidirectional controls, which can make a line look different
#: from what it says; and undecodable bytes of file names.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Remove control characters: for answers."""
    return _CONTROL.sub("", text)


def visible(text: str) -> str:
    r"""Show control characters as ``\u001b``: for names and messages."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str, most: int = 60) -> str:
    """The text, shortened to at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def counted(number: int, what: str) -> str:
    """Such as ``1 token`` or ``1,240 tokens``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def as_json(value: Any, stream: TextIO | None = None) -> str:
    """One line of JSON that is safe for a terminal and reads back as `value`.

    Characters that the encoding of `stream` lacks are escaped.
    """
    line = visible(json.dumps(value, ensure_ascii=False))
    try:
        line.encode((stream and stream.encoding) or "utf-8")
    except UnicodeEncodeError:
        return visible(json.dumps(value))
    return line


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> str:
    """An aligned table; all columns but the first are right-aligned if `right`.

    Lines are not wrapped: the terminal does that, and scripts read whole lines.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if right and k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(visible, row))
    console = Console(width=100_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
