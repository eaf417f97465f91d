"""Checks every request before its body is read: host, API key, and size.

This is plain ASGI, because Starlette's `BaseHTTPMiddleware` hides that a client has disconnected.
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

#: Maximum size of a body.
_MAX_BYTES = 8 * 1024**2
#: Maximum number of opening brackets in a body: parsing many objects blocks the event loop.
_MAX_BRACKETS = 2**18
#: Hosts that no public site can have: IP addresses, and names of this machine or network.
_LOCAL_HOSTS = re.compile(r"|[\d.]+|\[[\da-f:.]+\]|([\w-]+\.)*(localhost|local|internal)")
#: Paths that need no key: the page asks the user for it, and health checks have none.
_PUBLIC_PATHS = ("/", "/health", "/v1/health")


class RequestGuard:
    """Rejects requests with an unknown host, without the key, or with too large a body."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it on or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._error(scope, headers)
        if error is not None:
            await error.response(scope["path"])(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # handled as GET; uvicorn omits the body
            scope = {**scope, "method": "GET"}
        await self._app(scope, _LimitedReceive(receive), send)

    def _error(self, scope: Scope, headers: Headers) -> RequestError | None:
        if self._key is None and _is_rebound(scope, headers.get("host", "")):
            problem = "unknown host: use 127.0.0.1, or start the server with --api-key"
            return RequestError(403, problem, "unknown_host")
        if self._key is not None and scope["path"] not in _PUBLIC_PATHS:
            kind, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            # Starlette decodes headers as latin-1: this restores the bytes that were sent.
            if not hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
                return RequestError(401, "a valid API key is required", "invalid_api_key")
        length = headers.get("content-length", "0")
        return _too_large() if not length.isdecimal() or int(length) > _MAX_BYTES else None


class _LimitedReceive:
    """Rejects a body that is larger than declared or allowed, or would take seconds to parse."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._bytes, self._brackets = receive, 0, 0

    async def __call__(self) -> Message:
        message: Any = await self._receive()
        body = message.get("body", b"")
        self._bytes += len(body)
        self._brackets += body.count(b"{") + body.count(b"[")
        if self._bytes > _MAX_BYTES:
            raise HTTPException(413, _too_large().message)
        if self._brackets > _MAX_BRACKETS:
            raise HTTPException(413, f"the body has more than {_MAX_BRACKETS} lists and objects")
        return dict(message)


def _is_rebound(scope: Scope, host: str) -> bool:
    """Whether a public name resolves to this machine (DNS rebinding, by a page of that site)."""
    here = str((scope.get("server") or ("",))[0])
    if not here.startswith(("127.", "::1")):
        return False
    name = re.sub(r":\d+$", "", host).lower()
    return not (_LOCAL_HOSTS.fullmatch(name) or name == socket.gethostname().lower())


def _too_large() -> RequestError:
    return RequestError(413, f"the body is larger than {_MAX_BYTES} bytes", "request_too_large")
