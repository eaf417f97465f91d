"""Responses with several choices: what chat completions and completions have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from dspark_gguf.serve.bodies import ChoicesBody
from dspark_gguf.serve.deltas import Answers, Delta
from dspark_gguf.serve.formatter import Formatter, Record
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.tools import ToolCall
from dspark_gguf.serve.turns import TokenLogprob, timings, usage

ChoicesT = TypeVar("ChoicesT", bound=ChoicesBody)


@dataclass
class Choice:
    """The deltas of one answer, put together; `calls` are by id."""

    text: str = ""
    thought: str = ""
    calls: dict[str, ToolCall] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.thought += delta.thought
        if (part := delta.call) is not None:
            known = self.calls.get(part.id)
            self.calls[part.id] = known.plus(part) if known else part
        self.logprobs += delta.logprobs
        self.finish = delta.finish or self.finish


class ChoicesFormatter(Formatter[ChoicesT]):
    """Writes chunks of choices; the fields of a choice differ between the two APIs."""

    chunk: ClassVar[str]  # the `object` of a chunk

    @abstractmethod
    def first_choices(self, count: int) -> list[Record]:
        """What the first chunks of `count` answers have, before any delta."""

    @abstractmethod
    def chunk_choice(self, delta: Delta) -> Record:
        """The choice of a chunk."""

    @abstractmethod
    def full_choice(self, k: int, choice: Choice) -> Record:
        """Choice number `k` of a response that is not streamed."""

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The chunks; the last one has the usage, or if the client wants it, an extra one."""
        head, count, ended = {**self.head, "object": self.chunk}, len(answers.turns), 0
        extra = self.body.wants_usage
        for choice in self.first_choices(count):
            yield event({**head, "choices": [choice]})
        async for delta in answers.deltas():
            ended += delta.finish is not None
            numbers = _usage_and_timings(answers) if ended == count and not extra else {}
            yield event({**head, **numbers, "choices": [self.chunk_choice(delta)]})
        if extra:
            yield event({**head, **_usage_and_timings(answers), "choices": []})
        yield event("[DONE]")

    async def full_response(self, answers: Answers) -> Record:
        """The response with all choices."""
        choices = [Choice() for _ in answers.turns]
        async for delta in answers.deltas():
            choices[delta.index].add(delta)
        records = [self.full_choice(k, choice) for k, choice in enumerate(choices)]
        return {**self.head, **_usage_and_timings(answers), "choices": records}


def _usage_and_timings(answers: Answers) -> Record:
    return {"usage": usage(answers.turns), "timings": timings(answers.turns)}
