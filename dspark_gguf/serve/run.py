"""What the command does: engine, server, and the end of both."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.serve.app import make_server
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.service import Service

#: Seconds after which a thread that runs Python lets another one go on; Python's own are 0.005.
_SWITCH = 0.001


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
