"""The stream of deltas that all formatters read: thoughts, text, tool calls, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from dspark_gguf.chat.think import CLOSE, OPEN, ThinkSplitter
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.tools import ToolCall, ToolCallParser
from dspark_gguf.serve.turns import TokenLogprob, Turn, Update


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to answer number `index`: a thought, text or a part of a tool call.

    The last delta of an answer has a `finish`: "stop", "length" or "tool_calls".
    """

    index: int
    text: str = ""
    thought: str = ""
    call: ToolCall | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens since the last delta
    finish: str | None = None


class DeltaParser:
    """Splits the text of one answer into deltas.

    Args:
        inside: whether the answer begins inside a thought; None: thoughts are left in the text.
        calls: finds the tool calls; None: they are left in the text.
        continues_message: keeps leading white space, which is otherwise removed.
    """

    def __init__(
        self, inside: bool | None, calls: ToolCallParser | None, continues_message: bool
    ) -> None:
        self._thoughts = None if inside is None else ThinkSplitter(inside)
        self._calls = calls
        self._strips = not continues_message  # white space, until other text comes
        self._has_calls = False
        self._logprobs: tuple[TokenLogprob, ...] = ()

    def feed(self, update: Update) -> Iterator[Delta]:
        """The deltas of an update."""
        self._logprobs += update.logprobs
        index = update.turn.index
        for delta in self._split_thoughts(index, update.text, update.is_over):
            logprobs, self._logprobs = self._logprobs, ()
            yield replace(delta, logprobs=logprobs)
        if update.is_over:
            reason = "stop" if update.finish == "stop" else "length"
            finish = "tool_calls" if self._has_calls and reason == "stop" else reason
            yield Delta(index, logprobs=self._logprobs, finish=finish)

    def _split_thoughts(self, index: int, text: str, ends: bool) -> Iterator[Delta]:
        if self._thoughts is None:
            yield from self._split_calls(index, text, ends)
            return
        for part, thought in self._thoughts.feed(text, ends):
            part = part.replace(OPEN, "") if thought else part
            closes = thought and part.endswith(CLOSE)
            part = part.removesuffix(CLOSE) if closes else part
            if self._strips:
                part = part.lstrip()
            self._strips = closes or (self._strips and not part)
            if part and thought:
                yield Delta(index, thought=part)
            elif part:
                yield from self._split_calls(index, part, False)
        if ends:
            yield from self._split_calls(index, "", True)

    def _split_calls(self, index: int, text: str, ends: bool) -> Iterator[Delta]:
        for part in [text] if self._calls is None else self._calls.feed(text, ends):
            if isinstance(part, ToolCall):
                self._has_calls = self._has_calls or part.done
                yield Delta(index, call=part)
            elif part:
                yield Delta(index, text=part)


class Answers:
    """The answers to one request while they are generated.

    Iterate over `deltas` once; whoever stops before its end must call `cancel`.
    """

    def __init__(self, engine: Engine, turns: Sequence[tuple[Turn, DeltaParser]]) -> None:
        self.turns = [turn for turn, _ in turns]
        self._engine, self._parsers = engine, [parser for _, parser in turns]
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        for turn in self.turns:
            turn.post = self._queue.put_nowait
        engine.submit(self.turns, asyncio.get_running_loop().call_soon_threadsafe)

    def cancel(self) -> None:
        """End all answers that are still running."""
        self._engine.cancel(self.turns)

    async def deltas(self) -> AsyncIterator[Delta]:
        """The deltas of all answers as they come; raises the error of an answer that fails."""
        running = len(self.turns)
        try:
            while running:
                update = await self._queue.get()
                if update.error is not None:
                    raise update.error
                for delta in self._parsers[update.turn.index].feed(update):
                    yield delta
                running -= update.is_over
        finally:
            self.cancel()
