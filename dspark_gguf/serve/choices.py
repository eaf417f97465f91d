"""OpenAI's answers of several choices: what chats and completions have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from dspark_gguf.serve.bodies import StreamBody
from dspark_gguf.serve.form import Form, Record
from dspark_gguf.serve.pieces import Answers, Piece
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.tools import Call
from dspark_gguf.serve.turns import Scored, timings, usage

StreamT = TypeVar("StreamT", bound=StreamBody)


@dataclass
class Choice:
    """The pieces of one answer, put together; `calls` by their ids."""

    text: str = ""
    thought: str = ""
    calls: dict[str, Call] = field(default_factory=dict)
    scored: list[Scored] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Append one."""
        self.text += piece.text
        self.thought += piece.thought
        if (part := piece.call) is not None:
            known = self.calls.get(part.id)
            self.calls[part.id] = known.plus(part) if known else part
        self.scored += piece.scored
        self.finish = piece.finish or self.finish


class ChoicesForm(Form[StreamT]):
    """The shape of many choices; its parts differ between chats and completions."""

    chunk: ClassVar[str]  # the kind of an event

    @abstractmethod
    def starts(self, count: int) -> list[Record]:
        """The first `count` choices of a stream, which may be fewer."""

    @abstractmethod
    def grown(self, piece: Piece) -> Record:
        """What a piece adds to its choice."""

    @abstractmethod
    def choice(self, k: int, choice: Choice) -> Record:
        """A whole one, number `k`."""

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The chunks of a stream; the numbers come with the last one, or after it if asked for."""
        head, count, ended = {**self.head, "object": self.chunk}, len(answers.turns), 0
        asks = self.body.asks_usage
        for choice in self.starts(count):
            yield event({**head, "choices": [choice]})
        async for piece in answers.pieces():
            ended += piece.finish is not None
            numbers = _numbers(answers) if ended == count and not asks else {}
            yield event({**head, **numbers, "choices": [self.grown(piece)]})
        if asks:
            yield event({**head, **_numbers(answers), "choices": []})
        yield event("[DONE]")

    async def whole(self, answers: Answers) -> Record:
        """The whole answer at once, from the same pieces."""
        choices = [Choice() for _ in answers.turns]
        async for piece in answers.pieces():
            choices[piece.index].add(piece)
        made = [self.choice(k, choice) for k, choice in enumerate(choices)]
        return {**self.head, **_numbers(answers), "choices": made}


def _numbers(answers: Answers) -> Record:
    return {"usage": usage(answers.turns), "timings": timings(answers.turns)}
