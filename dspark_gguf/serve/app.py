"""The FastAPI application, and the server that runs it and the engine until a signal."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from dspark_gguf import __version__
from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.serve import info, page, routes
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.errors import RequestError, invalid, request_error_of
from dspark_gguf.serve.middleware import RequestGuard
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import ClientDisconnected

#: Time that running answers have to finish after a signal.
GRACE_SECONDS = 5.0
#: The interval at which Python threads take turns; Python's default is 0.005.
_SWITCH_SECONDS = 0.001


def make_app(service: Service, key: str | None) -> FastAPI:
    """The application with all routes; with a `key`, most of them require it."""
    app = FastAPI(title="dspark-gguf", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    for module in (info, page, routes):
        app.include_router(module.router)
    for kind in (RequestError, DSparkError, RequestValidationError, HTTPException, UnicodeError):
        app.add_exception_handler(kind, _error_response)
    app.add_exception_handler(ClientDisconnected, _disconnected)
    app.add_exception_handler(Exception, _error_response)
    app.add_middleware(RequestGuard, key=key)
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        failure = _invalid_body(error)
    elif isinstance(error, HTTPException):
        failure = RequestError(error.status_code, str(error.detail))
    elif isinstance(error, UnicodeError):
        failure = invalid("the request contains a lone surrogate, which is not a valid character")
    else:
        failure = request_error_of(error)
    response = failure.response(request.url.path)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _invalid_body(error: RequestValidationError) -> RequestError:
    if isinstance(error.body, bytes):
        return invalid("the body was not parsed as JSON: send Content-Type: application/json")
    errors = error.errors()
    if errors[0]["type"] == "json_invalid":
        return invalid(f"the body is not valid JSON: {errors[0]['ctx']['error']}")
    paths = [_path_in_body(each, error.body) for each in errors]
    path = max(paths, key=len)  # of a union: the errors of the type that matched furthest
    messages = [each["msg"] for each, own in zip(errors, paths, strict=True) if own == path]
    text = " or ".join(dict.fromkeys(messages)).replace(" or Input should be ", " or ")
    return invalid(f"{'.'.join(path) or 'the body'}: {text}", ".".join(path) or None)


def _path_in_body(error: Any, body: Any) -> list[str]:
    """The keys that lead to a validation error, without pydantic's names of union members."""
    path = []
    for key in error["loc"][1:]:
        try:
            body = body[key]
        except (LookupError, TypeError):  # not in the body: the missing field, or a union member
            if error["type"] != "missing" or key != error["loc"][-1]:
                continue
        path.append(str(key))
    return path


class Server(uvicorn.Server):
    """After a signal, running answers may finish for some time; a second one ends them at once."""

    def __init__(
        self, config: uvicorn.Config, service: Service, ready: Callable[[str], object]
    ) -> None:
        super().__init__(config)
        self._service, self._ready, self._signals = service, ready, 0

    async def startup(self, *args: Any, **options: Any) -> None:
        """Start listening, and pass the address to `ready`."""
        await super().startup(*args, **options)
        for server in self.servers[:1]:
            host, port = server.sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle a signal; unlike uvicorn, do not raise it again, so that the models are freed."""
        self._service.engine.stop(GRACE_SECONDS)
        self._signals += 1
        self.should_exit, self.force_exit = True, self._signals > 2

    async def shutdown(self, *args: Any, **options: Any) -> None:
        """Wait for running answers, which get an error after the grace period."""
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(*args, **options)
        ending.cancel()

    async def _end_answers(self) -> None:
        """Close the engine at a second signal, or if it has not ended all answers in time."""
        deadline = monotonic() + GRACE_SECONDS + 1
        while self._signals < 2 and monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.engine.close)


def make_server(
    service: Service, host: str, port: int, key: str | None, ready: Callable[[str], object]
) -> Server:
    """Make a server; its `run` starts it and calls `ready` with the URL, once it listens."""
    config = uvicorn.Config(
        make_app(service, key),
        host,
        port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 2,
        timeout_keep_alive=30,
        server_header=False,
    )
    return Server(config, service, ready)


def serve_pair(
    pair: Pair,
    settings: Settings,
    host: str,
    port: int,
    key: str | None,
    parallel: int | None,
    queue: int,
    say: Callable[[str], object],
) -> None:
    """Serve requests until a signal, with `settings` as defaults; `say` is told the address.

    `parallel` and `queue` are those of `Engine`. Clients must send `key`, unless it is None.

    Raises:
        UsageError: the server cannot listen on this address.
    """
    engine = Engine(pair, settings.speculation, parallel, queue)
    service = Service(pair, settings, engine)
    try:

        def ready(address: str) -> None:
            limits = f"up to {engine.slots} answers at once, {queue} in the queue"
            say(f"listening on {address} ({limits}); stop with Ctrl-C")

        server = make_server(service, host, port, key, ready)
        try:
            with low_latency():
                server.run()
        except SystemExit:  # raised by uvicorn if it cannot bind the address
            problem = f"cannot listen on {host}:{port}"
            raise UsageError(problem, "Is it already in use? Choose another --port.") from None
    finally:
        engine.close()
        service.close()


@contextmanager
def low_latency() -> Iterator[None]:
    """Keep other threads from delaying the event loop, for which all requests and streams wait.

    Existing objects are excluded from garbage collection, which stops all threads: with those of
    the web framework, for 80 ms. A shorter switch interval gives the loop the interpreter lock
    sooner: beside two threads that run Python all the time, `/health` took 37 ms with Python's
    default, and 16 ms with this interval.
    """
    before = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
