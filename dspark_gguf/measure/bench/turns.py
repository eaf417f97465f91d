"""One turn: every way answers the same prompt, one after the other, from an empty cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dspark_gguf.tally import Tally

#: Tokens that each way generates before anything is measured.
WARM_UP = 16


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt to answer.

    Attributes:
        domain: what kind of text it is.
        tokens: ids of the whole prompt.
        temperature: 0: greedy.
        most: tokens of the answer.
        turn: number of the turn, from 0; the same prompt at another temperature shares it.

    """

    domain: str
    tokens: tuple[int, ...]
    temperature: float
    most: int
    turn: int = 0


class Program(Protocol):
    """Something that answers prompts."""

    @property
    def name(self) -> str:
        """Heads its column."""

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache; figures that are not known stay 0.

        Raises:
            Cancelled: the user asked to stop.

        """


@dataclass(frozen=True, slots=True)
class Sample:
    """What one way took for one task."""

    way: str
    task: Task
    tally: Tally


def warm_up(programs: Sequence[Program], tasks: Sequence[Task]) -> None:
    """A few tokens of each task: the first pass pays for memory that the others reuse."""
    for program in programs:
        for task in tasks:
            program.answer(replace(task, most=WARM_UP))


def play(programs: Sequence[Program], tasks: Sequence[Task]) -> Iterator[list[Sample]]:
    """The samples of each turn. The order rotates by one from turn to turn.

    So a machine that becomes slower does not always slow down the same way.
    """
    for task in tasks:
        first = task.turn % len(programs)
        yield [
            Sample(program.name, task, program.answer(task))
            for program in (*programs[first:], *programs[:first])
        ]
