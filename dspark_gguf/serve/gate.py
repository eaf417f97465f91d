"""What every request passes first: the key, and the size of the body. Plain ASGI.

Starlette's own base class for this hides that a client has left.
"""

from __future__ import annotations

import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark_gguf.serve.refusals import Refusal

#: Most bytes of a body.
MOST_BYTES = 8 * 1024**2
#: What needs no key: the page asks for it, and probes have none.
_OPEN = ("/", "/health", "/v1/health")


class Gate:
    """Lets requests with the key through, up to a size."""

    def __init__(self, app: ASGIApp, key: str | None = None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            shape = refusal.as_anthropic() if is_anthropic(scope["path"]) else refusal.as_dict()
            await JSONResponse(shape, refusal.status)(scope, receive, send)
            return
        await self._app(scope, _Counted(receive), send)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        if self._key is not None and path not in _OPEN:
            kind, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                return Refusal(401, "a valid API key is needed", "invalid_api_key")
        length = headers.get("content-length", "0")
        return too_large() if not length.isdigit() or int(length) > MOST_BYTES else None


class _Counted:
    """Ends a body without a length, too."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._bytes = receive, 0

    async def __call__(self) -> Message:
        message: Any = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MOST_BYTES:
            raise HTTPException(413, too_large().message)
        return dict(message)


def too_large() -> Refusal:
    """Of the body."""
    return Refusal(413, f"the request is larger than {MOST_BYTES} bytes", "request_too_large")


def is_anthropic(path: str) -> bool:
    """Whether its clients expect errors in Anthropic's shape."""
    return path.startswith("/v1/messages")
