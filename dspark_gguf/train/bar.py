"""The progress of a step on stderr: a bar on a terminal, else a line each minute."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between lines where there is no terminal.
_EVERY = 60.0


class Bar:
    """One step: how far it is, from 0 to 1, and what to say about it."""

    def __init__(self, title: str, say: Callable[[str], object]) -> None:
        self._title, self._say = title, say
        console = Console(file=sys.stderr)
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"),
                TextColumn("{task.fields[text]}"), TimeRemainingColumn(), TextColumn("left"),
                console=console, speed_estimate_period=3600.0,
            )  # fmt: skip
            self._task: Any = self._progress.add_task(title, total=1.0, text="")
        self._shown = perf_counter()

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, done: float, text: str) -> None:
        """Where it is now."""
        if self._progress:
            self._progress.update(self._task, completed=min(1.0, done), text=text)
        elif perf_counter() - self._shown > _EVERY:
            self._shown = perf_counter()
            self._say(f"{self._title}: {min(1.0, done):.0%}, {text}")
