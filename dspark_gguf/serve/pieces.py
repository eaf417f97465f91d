"""The one stream that all routes translate: thoughts, text, calls and ends, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from dspark_gguf.chat.think import CLOSE, OPEN, ThinkSplitter
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.tools import Call, CallReader
from dspark_gguf.serve.turns import Scored, Turn, Update


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of answer number `index`.

    It is a thought, text, a part of a call, or the end with its `finish`: stop, length or
    tool_calls.
    """

    index: int
    text: str = ""
    thought: str = ""
    call: Call | None = None
    scored: tuple[Scored, ...] = ()
    finish: str | None = None


class PieceMaker:
    """Makes the pieces of one answer; `inside`: whether it begins as a thought, None: never.

    White space around a thought is no part of it or the answer, unless that `is_begun` already.
    """

    def __init__(
        self, inside: bool | None, calls: CallReader | None, is_begun: bool = False
    ) -> None:
        self._thoughts = None if inside is None else ThinkSplitter(inside)
        self._calls = calls
        self._begins = not is_begun
        self._called = False
        self._scored: tuple[Scored, ...] = ()

    def feed(self, update: Update) -> Iterator[Piece]:
        """Pieces of what some passes brought."""
        self._scored += update.scored
        index, text, ends = update.turn.index, update.text, update.is_over
        for piece in self._parts(index, text, ends):
            scored, self._scored = self._scored, ()
            yield Piece(index, piece.text, piece.thought, piece.call, scored)
        if ends:
            reason = "stop" if update.finish == "stop" else "length"
            finish = "tool_calls" if self._called and reason == "stop" else reason
            yield Piece(index, scored=self._scored, finish=finish)

    def _parts(self, index: int, text: str, ends: bool) -> Iterator[Piece]:
        if self._thoughts is None:
            yield from self._said(index, text, ends)
            return
        for part, thought in self._thoughts.feed(text, ends):
            part = part.replace(OPEN, "") if thought else part
            closes = thought and part.endswith(CLOSE)
            part = part.removesuffix(CLOSE) if closes else part
            if self._begins:
                part = part.lstrip()
            self._begins = closes or (self._begins and not part)
            if part and thought:
                yield Piece(index, thought=part)
            elif part:
                yield from self._said(index, part, False)
        if ends:
            yield from self._said(index, "", True)

    def _said(self, index: int, text: str, ends: bool) -> Iterator[Piece]:
        found = [text] if self._calls is None else self._calls.feed(text, ends)
        for each in found:
            if isinstance(each, Call):
                self._called = self._called or each.done
                yield Piece(index, call=each)
            elif each:
                yield Piece(index, text=each)


class Answers:
    """The answers to one request, on their way.

    Iterate over it once for the pieces of all, in the order in which they come. Whoever stops
    listening calls `leave`.
    """

    def __init__(self, engine: Engine, made: Sequence[tuple[Turn, PieceMaker]]) -> None:
        self.turns = [turn for turn, _ in made]
        self._engine, self._makers = engine, [maker for _, maker in made]
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        for turn in self.turns:
            turn.post = self._queue.put_nowait
        engine.submit(self.turns, asyncio.get_running_loop().call_soon_threadsafe)

    def leave(self) -> None:
        """Nobody listens any more."""
        self._engine.leave(self.turns)

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces; raises what ended an answer early."""
        left = len(self.turns)
        try:
            while left:
                update = await self._queue.get()
                if update.error is not None:
                    raise update.error
                for piece in self._makers[update.turn.index].feed(update):
                    yield piece
                left -= update.is_over
        finally:
            self.leave()
