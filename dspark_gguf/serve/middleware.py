"""Checks of every request before it is read: the API key, and the size of the body. Plain ASGI.

Starlette's own base class for this hides that a client has left.
"""

from __future__ import annotations

import hmac
import re
import socket
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark_gguf.serve.errors import RequestError

#: Most bytes of a body.
MAX_BYTES = 8 * 1024**2
#: Most brackets in it: objects, unlike text, take long to read, and meanwhile nobody is answered.
_MAX_PARTS = 2**18
#: Names that no other site can have: numbers, and those that lead to this machine or network.
_OURS = re.compile(r"|[\d.]+|\[[\da-f:.]+\]|([\w-]+\.)*(localhost|local|internal)")
#: What needs no key: the page asks for it, and probes have none.
_OPEN = ("/", "/health", "/v1/health")


class RequestGuard:
    """Lets requests pass that have the key and are not too large."""

    def __init__(self, app: ASGIApp, key: str | None = None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._problem(scope, headers)
        if error is not None:
            await error.response(scope["path"])(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        await self._app(scope, _Counted(receive), send)

    def _problem(self, scope: Scope, headers: Headers) -> RequestError | None:
        if self._key is None and _is_foreign(scope, headers.get("host", "")):
            problem = "this address is not known here: use 127.0.0.1, or start it with --api-key"
            return RequestError(403, problem, "unknown_host")
        if self._key is not None and scope["path"] not in _OPEN:
            kind, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            # The bytes that were sent: whatever they are, headers are decoded as latin-1.
            if not hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
                return RequestError(401, "a valid API key is needed", "invalid_api_key")
        length = headers.get("content-length", "0")
        return too_large() if not length.isdecimal() or int(length) > MAX_BYTES else None


class _Counted:
    """Stops a body that is too large without saying so, or would take seconds to parse."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._bytes, self._parts = receive, 0, 0

    async def __call__(self) -> Message:
        message: Any = await self._receive()
        body = message.get("body", b"")
        self._bytes += len(body)
        self._parts += body.count(b"{") + body.count(b"[")
        if self._bytes > MAX_BYTES:
            raise HTTPException(413, too_large().message)
        if self._parts > _MAX_PARTS:
            raise HTTPException(413, f"the request has more than {_MAX_PARTS} lists and objects")
        return dict(message)


def _is_foreign(scope: Scope, host: str) -> bool:
    """Whether a page of another site may ask: its name can be made to lead to this machine."""
    here = str((scope.get("server") or ("",))[0])
    if not here.startswith(("127.", "::1")):
        return False
    name = re.sub(r":\d+$", "", host).lower()
    return not (_OURS.fullmatch(name) or name == socket.gethostname().lower())


def too_large() -> RequestError:
    """The error for a body that is too large."""
    return RequestError(413, f"the request is larger than {MAX_BYTES} bytes", "request_too_large")
