"""What the command does: engine, server, and the end of both."""

from __future__ import annotations

from collections.abc import Callable

from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.serve.app import make_server
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.service import Service


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
            server.run()
        except SystemExit:  # uvicorn's way to say that the port is taken
            problem = f"cannot listen on {host}:{port}"
            raise UsageError(problem, "Is another server there? Choose another --port.") from None
    finally:
        engine.close()
        service.close()
