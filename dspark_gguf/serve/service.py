"""What the routes share: the engine, the request parser, and the name of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import time
from typing import TypeVar

from fastapi import Request

from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.deltas import Answers, DeltaParser
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.parsing import ParsedRequest, RequestParser
from dspark_gguf.serve.turns import Turn

T = TypeVar("T")


@dataclass
class Service:
    """The state of one server; `settings` are the defaults of requests."""

    pair: Pair
    settings: Settings
    engine: Engine
    created: int = field(default_factory=lambda: int(time()))  # Unix time

    def __post_init__(self) -> None:
        self.parser = RequestParser(self.pair, self.settings)
        # Several threads, so that one long text delays neither a pass nor all other texts.
        self._threads = ThreadPoolExecutor(4, "parser")

    def close(self) -> None:
        """Stop the worker threads."""
        self._threads.shutdown(cancel_futures=True)

    @property
    def name(self) -> str:
        """The model's name for clients: its file name without the suffix."""
        return self.pair.target.path.stem

    @property
    def vocabulary(self) -> Vocabulary:
        """The target's vocabulary."""
        return self.pair.vocabulary

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in a worker thread so that the event loop is not blocked."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def answers(self, parse: Callable[[], list[ParsedRequest]]) -> Answers:
        """Call `parse` in a worker thread, and queue the requests that it returns.

        Raises:
            RequestError: the request is invalid, the queue is full, or the server shuts down.
            DSparkError: the model cannot do what is requested.
        """
        self.engine.require_room(1)
        return Answers(self.engine, await self.run_in_thread(lambda: self._turns(parse())))

    def _turns(self, requests: list[ParsedRequest]) -> list[tuple[Turn, DeltaParser]]:
        """All turns of the requests, with consecutive indices."""
        self.engine.require_room(sum(max(1, each.n) for each in requests))
        turns = [turn for each in requests for turn in self.parser.turns(each)]
        for k, (turn, _) in enumerate(turns):
            turn.index = k
        return turns


def service_of(request: Request) -> Service:
    """The service of the application that received the request."""
    service: Service = request.app.state.service
    return service
