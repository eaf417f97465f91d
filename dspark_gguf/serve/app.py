"""The application, and the server that runs it and the engine until a signal."""

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
from dspark_gguf.serve.streams import ClientLeft

#: Seconds that running answers have after a signal.
GRACE = 5.0
#: Seconds after which a thread that runs Python lets another one go on; Python's own are 0.005.
_SWITCH = 0.001


def make_app(service: Service, key: str | None = None) -> FastAPI:
    """The routes of a service; with a `key` nearly all of them need it."""
    app = FastAPI(title="dspark-gguf", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    for each in (info, page, routes):
        app.include_router(each.router)
    for kind in (RequestError, DSparkError, RequestValidationError, HTTPException, UnicodeError):
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(ClientLeft, _left)
    app.add_exception_handler(Exception, _refused)
    app.add_middleware(RequestGuard, key=key)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        failure = _wrong_body(error)
    elif isinstance(error, HTTPException):
        failure = RequestError(error.status_code, str(error.detail))
    elif isinstance(error, UnicodeError):
        failure = invalid("the request holds half a character (a lone surrogate)")
    else:
        failure = request_error_of(error)
    response = failure.response(request.url.path)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def _wrong_body(error: RequestValidationError) -> RequestError:
    if isinstance(error.body, bytes):
        return invalid("the body is not read as JSON: send Content-Type: application/json")
    faults = error.errors()
    if faults[0]["type"] == "json_invalid":
        return invalid(f"the body is no JSON: {faults[0]['ctx']['error']}")
    places = [_place(each, error.body) for each in faults]
    place = max(places, key=len)  # of a value that may be of several types, the one it nearly is
    said = [each["msg"] for each, own in zip(faults, places, strict=True) if own == place]
    text = " or ".join(dict.fromkeys(said)).replace(" or Input should be ", " or ")
    return invalid(f"{'.'.join(place) or 'the body'}: {text}", ".".join(place) or None)


def _place(fault: Any, body: Any) -> list[str]:
    """Where it is in the body, without the names of the types that were tried."""
    place = []
    for key in fault["loc"][1:]:
        try:
            body = body[key]
        except (LookupError, TypeError):  # the name of a type, unless it is what is missing
            if fault["type"] != "missing" or key != fault["loc"][-1]:
                continue
        place.append(str(key))
    return place


class Server(uvicorn.Server):
    """Ends answers with a reason, after a signal; a second one ends them at once."""

    def __init__(
        self, config: uvicorn.Config, service: Service, ready: Callable[[str], object] = str
    ) -> None:
        super().__init__(config)
        self._service, self._ready, self._signals = service, ready, 0

    async def startup(self, *args: Any, **options: Any) -> None:
        """As uvicorn does it; then says where it listens."""
        await super().startup(*args, **options)
        for server in self.servers[:1]:
            host, port = server.sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal. Not raised again afterwards: the models are freed first."""
        self._service.engine.stop(GRACE)
        self._signals += 1
        self.should_exit, self.force_exit = True, self._signals > 2

    async def shutdown(self, *args: Any, **options: Any) -> None:
        """As uvicorn does it, which waits for the answers."""
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(*args, **options)
        ending.cancel()

    async def _end_answers(self) -> None:
        """At a second signal, or if a pass takes too long after the first."""
        late = monotonic() + GRACE + 1
        while self._signals < 2 and monotonic() < late:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.engine.close)


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
    """Answer requests until a signal; a UsageError if the address cannot be had."""
    engine = Engine(pair, settings.speculation, parallel, queue)
    service = Service(pair, settings, engine)
    try:

        def ready(address: str) -> None:
            many = f"up to {engine.slots} answers at once, {queue} in the queue"
            say(f"listening on {address} ({many}); Ctrl-C ends it")

        server = make_server(service, host, port, key, ready)
        try:
            with attentive():
                server.run()
        except SystemExit:  # uvicorn's way to say that the port is taken
            problem = f"cannot listen on {host}:{port}"
            raise UsageError(problem, "Is another server there? Choose another --port.") from None
    finally:
        engine.close()
        service.close()


@contextmanager
def attentive() -> Iterator[None]:
    """Inside, no other thread holds up the loop for long, as `/health` and all streams wait for it.

    What was loaded so far is left out of garbage collection, which stops all threads: 80 ms, with
    the objects of the web framework. The loop waits for a turn several times in each answer: beside
    two threads that run Python all the time, `/health` took 37 ms with Python's turns, 16 with
    these.
    """
    before = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
