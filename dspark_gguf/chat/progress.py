"""Progress bars on stderr, where that is a terminal, and work that Ctrl-C can end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from operator import length_hint
from threading import Event, Timer
from time import perf_counter
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dspark_gguf.errors import Cancelled
from dspark_gguf.progress import ProgressCallback, no_progress

T = TypeVar("T")
#: Seconds of work from which the time left is estimated: some answers take longer than rich's 30.
_PERIOD = 3600.0
#: Seconds between lines where there is no terminal.
_EVERY = 60.0
#: Seconds of silence before a note says that a prompt is being read.
_PATIENCE = 1.0
#: Seconds after which work that should be done is late.
_LATE = 1.0


def track(
    items: Iterable[T],
    total: int | None = None,
    done: int = 0,
    tokens_of: Callable[[T], int] | None = None,
    title: str = "",
) -> Iterator[T]:
    """Pass `items` on and count them, starting at `done`; with `tokens_of` items, show the speed.

    `total` is needed if they are not a sequence.
    """
    with counting(length_hint(items) if total is None else total, done, title) as show:
        tokens, start = 0, perf_counter()
        for item in items:
            yield item
            speed = ""
            if tokens_of:
                tokens += tokens_of(item)
                speed = f"{tokens / (perf_counter() - start):.1f} tokens/s"
            done += 1
            show(done, speed)


@contextmanager
def counting(
    total: int, done: int = 0, title: str = "", say: Callable[[str], object] | None = None
) -> Iterator[Callable[..., object]]:
    """Yields a function to call with the number done, which may be a fraction, and a short text.

    With `say`, progress is in percent; without a terminal, `say` gets a line each minute.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _saying(total, title, say) if say else lambda done, text="": None
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}")] * bool(title)
    columns += [BarColumn(), TextColumn("{task.percentage:.0f}%") if say else MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[text]}"), TimeRemainingColumn(), TextColumn("left")]
    with Progress(*columns, console=console, speed_estimate_period=_PERIOD) as progress:
        task = progress.add_task(title, total=total, completed=done, text="")
        yield lambda done, text="": progress.update(task, completed=done, text=text)


def _saying(total: int, title: str, say: Callable[[str], object]) -> Callable[..., object]:
    said = perf_counter()

    def show(done: float, text: str = "") -> None:
        nonlocal said
        if perf_counter() - said > _EVERY:
            said = perf_counter()
            say(f"{title}: {min(1.0, done / total):.0%}, {text}")

    return show


def uninterrupted(items: Iterable[T], interrupt: Event) -> Iterator[T]:
    """Pass items on; raises `Cancelled` once the interrupt is set."""
    for item in items:
        if interrupt.is_set():
            raise Cancelled
        yield item


class _Left(ProgressColumn):
    """Counts down the seconds that work should take, if that is known."""

    def render(self, task: Task) -> Text:
        """The text at this moment."""
        seconds = task.fields["ends"] - perf_counter()
        if task.fields["ends"] == 0.0:
            return Text("...")
        if seconds >= 1.0:
            return Text(f"- about {seconds:.0f} s left")
        return Text("- nearly done" if seconds > -_LATE else "- takes longer than usual")


@contextmanager
def working() -> Iterator[ProgressCallback]:
    """Yields a callback whose latest line is shown on stderr, where that is a terminal.

    Nothing is shown before its first call, so that other programs' bars can come first.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield no_progress
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), _Left())
    with ExitStack() as shown:
        progress = Progress(*columns, console=console, transient=True)
        task = progress.add_task("", total=None, ends=0.0)

        def show(text: str, seconds: float = 0.0) -> None:
            ends = perf_counter() + seconds if seconds else 0.0
            progress.update(task, description=text, ends=ends)
            if not progress.live.is_started:
                shown.enter_context(progress)

        yield show


def waited_for(items: Iterator[T], text: str) -> Iterator[T]:
    """Pass items on; while the first one is slow to come, `text` is shown on stderr."""
    with working() as show:
        timer = Timer(_PATIENCE, show, [text])
        timer.start()
        try:
            found = list(islice(items, 1))
        finally:
            timer.cancel()
            timer.join()
    yield from found
    yield from items
