"""What the routes share: the engine, the parser of requests, and the name of the model."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import time
from typing import Any, TypeVar

from fastapi import Request

from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.parsing import ParsedRequest, RequestParser
from dspark_gguf.serve.pieces import Answers, PieceMaker
from dspark_gguf.serve.turns import Turn

T = TypeVar("T")


@dataclass
class Service:
    """Of one server."""

    pair: Pair
    settings: Settings
    engine: Engine
    created: int = field(default_factory=lambda: int(time()))

    def __post_init__(self) -> None:
        self.parser = RequestParser(self.pair, self.settings)
        # A few threads: a text that takes long holds up neither a pass nor all other texts.
        self._threads = ThreadPoolExecutor(4, "parser")

    def close(self) -> None:
        """End its threads."""
        self._threads.shutdown(cancel_futures=True)

    @property
    def name(self) -> str:
        """The model's, for clients: its file without the ending."""
        return self.pair.target.path.stem

    @property
    def vocabulary(self) -> Vocabulary:
        """The target's."""
        return self.pair.vocabulary

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Done beside the loop, which must not wait for long texts."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def answers(self, parse: Callable[[], list[ParsedRequest]]) -> Answers:
        """Queue the requests that `parse`, called in another thread, returns; turns are numbered.

        Raises:
            RequestError: what cannot be answered, or not now.
            DSparkError: likewise.
        """
        self.engine.require_room(1)
        return Answers(self.engine, await self.in_thread(self._turns, parse))

    def _turns(self, parse: Callable[[], list[ParsedRequest]]) -> list[tuple[Turn, PieceMaker]]:
        found = parse()
        self.engine.require_room(sum(max(1, each.n) for each in found))
        made = [one for each in found for one in self.parser.turns(each)]
        for k, (turn, _) in enumerate(made):
            turn.index = k
        return made

    def head(self, kind: str, prefix: str) -> dict[str, Any]:
        """The first fields of an answer."""
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time()),
            "model": self.name,
        }


def service_of(request: Request) -> Service:
    """The one of the app that got the request."""
    found: Service = request.app.state.service
    return found
