"""Server-sent events, and clients that disconnect."""

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
from dspark_gguf.serve.deltas import Answers
from dspark_gguf.serve.errors import RequestError, request_error_of

T = TypeVar("T")
#: Time without an event after which a comment keeps the connection alive.
KEEPALIVE_SECONDS = 5.0


class ClientDisconnected(Exception):  # noqa: N818 - not an error
    """The client closed the connection before the response was ready."""


def event(data: Any, name: str | None = None) -> str:
    """A server-sent event; `data` is text, or a value that is sent as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class EventStreamResponse(Response):
    """Sends `events`, and comments while there are none; cancels `answers` at the end."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, events: AsyncGenerator[str, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._answers, self._events = answers, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the answers end too if the client leaves before the first event."""
        try:
            with suppress(ClientDisconnected):
                await cancel_on_disconnect(receive, self._send_events(send))
        finally:
            self._answers.cancel()

    async def _send_events(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        self._sent_at = monotonic()
        comments = asyncio.create_task(self._send_comments(send))
        try:
            async for text in self._events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                self._sent_at = monotonic()
        finally:
            comments.cancel()
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _send_comments(self, send: Send) -> None:
        # One timer for the whole stream: a timer for each event would cost more than the event.
        while True:
            silence = monotonic() - self._sent_at
            if silence >= KEEPALIVE_SECONDS:
                text, silence = b": keep-alive\n\n", 0.0
                await send({"type": "http.response.body", "body": text, "more_body": True})
                self._sent_at = monotonic()
            await asyncio.sleep(KEEPALIVE_SECONDS - silence)


class AsciiJSONResponse(JSONResponse):
    r"""JSON in ASCII: a lone surrogate, which UTF-8 cannot encode, stays an escape like \ud83d."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content).encode()


async def with_error_events(
    events: AsyncIterator[str], error_events: Callable[[RequestError], Iterable[str]]
) -> AsyncGenerator[str, None]:
    """The events, and if they fail, those that `error_events` makes of the error."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        if not isinstance(error, RequestError | DSparkError):
            traceback.print_exc(file=sys.stderr)
        for each in error_events(request_error_of(error)):
            yield each


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a disconnect cancels it and raises `ClientDisconnected`."""
    task = asyncio.create_task(work)
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        for each in (task, disconnect):
            each.cancel()
            with suppress(BaseException):
                await each


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
