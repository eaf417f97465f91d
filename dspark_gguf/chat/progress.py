"""How far work is, on stderr where that is a terminal, and its end by Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event
from time import perf_counter
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from dspark_gguf.errors import Cancelled

T = TypeVar("T")
#: Seconds that the time left is estimated from. rich's 30 are less than many an answer takes.
_PERIOD = 3600.0


def track(
    items: Iterable[T],
    total: int,
    done: int = 0,
    tokens_of: Callable[[T], int] | None = None,
    title: str = "",
) -> Iterator[T]:
    """Pass `items` on and count them, from `done` on; with `tokens_of` an item, show the speed."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield from items
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}")] * bool(title)
    columns += [BarColumn(), MofNCompleteColumn()]
    if tokens_of:
        columns.append(TextColumn("{task.fields[speed]}"))
    columns += [TimeRemainingColumn(), TextColumn("left")]
    with Progress(*columns, console=console, speed_estimate_period=_PERIOD) as progress:
        task = progress.add_task(title, total=total, completed=done, speed="")
        tokens, start = 0, perf_counter()
        for item in items:
            yield item
            speed = ""
            if tokens_of:
                tokens += tokens_of(item)
                speed = f"{tokens / (perf_counter() - start):.1f} tokens/s"
            progress.update(task, advance=1, speed=speed)


def uninterrupted(items: Iterable[T], interrupt: Event) -> Iterator[T]:
    """Pass items on; raises `Cancelled` once the interrupt is set."""
    for item in items:
        if interrupt.is_set():
            raise Cancelled
        yield item


@contextmanager
def working() -> Iterator[Callable[[str], object]]:
    """Inside, the line that is given last stands on stderr, where that is a terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield str
        return
    with console.status("") as status:
        yield lambda text: status.update(f"{text} ...")
