"""One turn: all methods answer the same prompt, one after another, each from an empty cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

from dspark_gguf.config import Limits
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine.timing import Watch
from dspark_gguf.errors import Cancelled
from dspark_gguf.noise import Noise
from dspark_gguf.tally import Answer, Tally

#: Tokens that each method generates before anything is measured.
WARM_UP = 16


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt to answer."""

    domain: str  # what kind of text it is
    tokens: tuple[int, ...]  # ids of the whole prompt
    temperature: float  # 0: greedy
    most: int  # tokens of the answer
    turn: int = 0  # number of the turn; the same prompt at another temperature shares it


class Program(Protocol):
    """Something that answers prompts."""

    name: str  # heads its column
    about: str  # what it does, in words

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache; figures that are not known stay 0."""


@dataclass
class OwnProgram:
    """A method of this package."""

    name: str
    decoder_at: Callable[[float], Decoder]  # makes the decoder of a temperature, once
    limits: Limits = field(default_factory=Limits)  # of the answers, but for their tokens
    about: str = ""

    def __post_init__(self) -> None:
        self.decoder_at = cache(self.decoder_at)

    def answer(self, task: Task) -> Tally:
        """Answer from empty caches; raises `Cancelled` when the user asks to stop.

        Without a seed in the settings, the turn's number is the seed, so that runs can be repeated.
        """
        decoder = self.decoder_at(task.temperature)
        decoder.reset()
        limits = self.limits.model_copy(update={"max_tokens": task.most})
        draws = Noise.of(task.turn) if decoder.seed is None else None
        answer = Answer()
        for round in decoder.generate(task.tokens, limits, draws):
            answer.add(round)
        if answer.finish_reason == "cancelled":
            raise Cancelled
        return answer.tally


@dataclass(frozen=True, slots=True)
class Sample:
    """What one task cost one method."""

    method: str
    task: Task
    tally: Tally


def warm_up(programs: Sequence[Program], tasks: Sequence[Task]) -> None:
    """Answer with a few tokens: a first pass pays for memory that later ones reuse."""
    for program in programs:
        for task in tasks:
            program.answer(replace(task, most=WARM_UP))


def play(
    programs: Sequence[Program], tasks: Sequence[Task], watch: Watch = iter
) -> Iterator[list[Sample]]:
    """The samples of each turn, in an order that rotates by one from turn to turn.

    So a machine that slows down does not always slow down the same method. `watch` may show how
    many answers are done.
    """
    starts = [(task, task.turn % len(programs)) for task in tasks]
    work = [(task, one) for task, k in starts for one in (*programs[k:], *programs[:k])]
    samples: list[Sample] = []
    for task, program in watch(work):
        samples.append(Sample(program.name, task, program.answer(task)))
        if len(samples) == len(programs):
            yield samples
            samples = []
