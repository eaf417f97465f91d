"""The application, and the server that runs it until a signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from dspark_gguf import __version__
from dspark_gguf.errors import DSparkError
from dspark_gguf.serve import info, page, routes
from dspark_gguf.serve.gate import Gate
from dspark_gguf.serve.refusals import Refusal, invalid, refusal_of
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import ClientLeft

#: Seconds that running answers have after a signal.
GRACE = 5.0


def make_app(service: Service, key: str | None = None) -> FastAPI:
    """The routes of a service; with a `key` nearly all of them need it."""
    app = FastAPI(title="dspark-gguf", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    for each in (info, page, routes):
        app.include_router(each.router)
    for kind in (Refusal, DSparkError, RequestValidationError, HTTPException, UnicodeError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(ClientLeft, _left)
    app.add_exception_handler(Exception, _refused)
    app.add_middleware(Gate, key=key)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        refusal = _wrong_body(error)
    elif isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, str(error.detail))
    elif isinstance(error, UnicodeError):
        refusal = invalid("the request holds half a character (a lone surrogate)")
    else:
        refusal = refusal_of(error)
    return refusal.response(request.url.path)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _wrong_body(error: RequestValidationError) -> Refusal:
    first: dict[str, Any] = error.errors()[0]
    place = ".".join(str(each) for each in first["loc"][1:])
    return invalid(f"{place}: {first['msg']}" if place else first["msg"], place or None)


class Server(uvicorn.Server):
    """Ends streams with a reason, after a signal; a second one ends at once."""

    def __init__(
        self, config: uvicorn.Config, service: Service, ready: Callable[[str], object] = str
    ) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, *args: Any, **options: Any) -> None:
        """As uvicorn does it; then says where it listens."""
        await super().startup(*args, **options)
        for server in self.servers[:1]:
            host, port = server.sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal. Not raised again afterwards: the models are freed first."""
        self._service.engine.stop(GRACE)
        self.force_exit, self.should_exit = self.should_exit, True


def make_server(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 8080,
    key: str | None = None,
    ready: Callable[[str], object] = str,
) -> Server:
    """A server that `run` starts; `ready` is called with its address."""
    config = uvicorn.Config(
        make_app(service, key),
        host,
        port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=int(GRACE) + 2,
        timeout_keep_alive=30,
        server_header=False,
    )
    return Server(config, service, ready)
