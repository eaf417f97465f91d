"""Server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from dspark_gguf.errors import DSparkError
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.refusals import Refusal, refusal_of

T = TypeVar("T")
#: Seconds of silence before a comment says that the server is at work.
SILENCE = 5.0


class ClientLeft(Exception):  # noqa: N818 - not an error
    """Nobody waits for the answer."""


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Streamed(StreamingResponse):
    """Sends the events of answers, with comments against silence."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, events: AsyncGenerator[str, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_spoken(events), headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whoever has left before the first event ends the answers, too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.leave()


class Whole(JSONResponse):
    """An answer at once; half a character that a model spelled out in JSON stays spelled out."""

    def render(self, content: Any) -> bytes:
        """In ASCII."""
        return json.dumps(content).encode()


async def guarded(
    events: AsyncIterator[str], broken: Callable[[Refusal], Iterable[str]]
) -> AsyncGenerator[str, None]:
    """The events, and those of `broken` where they break off."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        if not isinstance(error, Refusal | DSparkError):
            traceback.print_exc(file=sys.stderr)
        for each in broken(refusal_of(error)):
            yield each


async def _spoken(events: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    task: asyncio.Task[str] | None = None
    try:
        while True:
            task = asyncio.create_task(_next(events))
            while not (await asyncio.wait({task}, timeout=SILENCE))[0]:
                yield ": at work\n\n"
            if (text := task.result()) is None:
                return
            yield text
    finally:
        if task is not None and not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await events.aclose()


async def _next(events: AsyncIterator[str]) -> Any:
    return await anext(events, None)


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(BaseException):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
