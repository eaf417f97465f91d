"""Server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dspark_gguf.errors import DSparkError
from dspark_gguf.serve.errors import RequestError, request_error_of
from dspark_gguf.serve.pieces import Answers

T = TypeVar("T")
#: Seconds of silence before a comment says that the server is at work.
SILENCE = 5.0


class ClientLeft(Exception):  # noqa: N818 - not an error
    """Nobody waits for the answer."""


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Streamed(Response):
    """Sends the events of answers, with comments against silence."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, events: AsyncGenerator[str, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answers, self._events = answers, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whoever has left before the first event ends the answers, too."""
        try:
            with suppress(ClientLeft):
                await unless_left(receive, self._speak(send))
        finally:
            self._answers.leave()

    async def _speak(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        self._spoke = monotonic()
        comments = asyncio.create_task(self._comment(send))
        try:
            async for text in self._events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                self._spoke = monotonic()
        finally:
            comments.cancel()
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _comment(self, send: Send) -> None:
        """A timer of its own: one for each event would take longer than the event."""
        while True:
            silence = monotonic() - self._spoke
            if silence >= SILENCE:
                text, silence = b": at work\n\n", 0.0
                await send({"type": "http.response.body", "body": text, "more_body": True})
                self._spoke = monotonic()
            await asyncio.sleep(SILENCE - silence)


class Whole(JSONResponse):
    """An answer at once; half a character that a model spelled out in JSON stays spelled out."""

    def render(self, content: Any) -> bytes:
        """In ASCII."""
        return json.dumps(content).encode()


async def guarded(
    events: AsyncIterator[str], broken: Callable[[RequestError], Iterable[str]]
) -> AsyncGenerator[str, None]:
    """The events, and those of `broken` where they break off."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        if not isinstance(error, RequestError | DSparkError):
            traceback.print_exc(file=sys.stderr)
        for each in broken(request_error_of(error)):
            yield each


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client leaves."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
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


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
