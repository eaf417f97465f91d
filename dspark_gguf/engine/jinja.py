"""Chat templates of foreign files, rendered where they can do no harm.

Jinja's sandbox keeps a template away from Python's insides, but nothing in Jinja bounds what it
costs: ``'a' * 10**9``, ``%1000000000d``, a filter's ``width``, a string doubled forty times and two
nested loops are all legal. Bounding every operator, filter and method one by one would need a list
that is never complete; a limit on time in the same process cannot stop a single call of C code; a
thread cannot be stopped at all. So a template runs in a process of its own, which the system
bounds: after `SECONDS` it is killed, and its memory ends at `MEBIBYTES` (where the system limits
address space: Linux, most Unixes; elsewhere only time and the length of the text are bounded). One
such process serves all models; it starts in a tenth of a second and renders in a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from dspark_gguf.errors import EngineError, UsageError

#: A rendering takes about a millisecond, and a context holds less than a million characters.
SECONDS = 10.0
MEBIBYTES = 1024
CHARACTERS = 16 * 1024**2
#: The first answer waits for Python to start, perhaps while a large model is read from the disk.
_START_SECONDS = 60.0
_SERVE = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"


class TemplateRefused(Exception):  # noqa: N818 - the template said no: that may be its purpose
    """A template that cannot be read, or refuses its messages."""


class Renderer:
    """A process that renders chat templates; it starts when it is first asked.

    Args:
        seconds: after which a rendering is given up.

    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, values: Mapping[str, Any] | None = None) -> str:
        """The text of a template with these (plain) values; without values, only read it.

        Raises:
            TemplateRefused: the template cannot be read, or raised an error.
            UsageError: it takes too long, or too much memory.

        """
        with self._lock:
            if not self._is_there():
                self._start()
            answer = self._ask({"source": source, "values": values}, self._seconds)
        if answer is None:
            raise UsageError(
                f"a chat template that renders within {self._seconds:.0f} s and {MEBIBYTES} MiB",
                "one that does not",
                "see --chat-template",
            )
        if "error" in answer:
            raise TemplateRefused(answer["error"])
        return str(answer["text"])

    def stop(self) -> None:
        """End the process; the next rendering starts another one."""
        if self._process is not None:
            self._stop()
            self._process = None

    def _is_there(self) -> bool:
        """Whether the process runs and is ours: what a fork left us is its parent's."""
        process = self._process
        return process is not None and self._owner == os.getpid() and process.poll() is None

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and a closed terminal are not its business
            )
        except OSError as error:
            raise _cannot_start(str(error)) from None
        self._process, self._owner = process, os.getpid()
        self._stop = weakref.finalize(self, _stop, process)
        if self._ask({}, _START_SECONDS) is None:
            raise _cannot_start("one that ended at once")

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer to one line of JSON; None where the process had to be stopped."""
        process = self._process
        assert process is not None and process.stdin and process.stdout  # noqa: PT018 - for mypy
        watch = threading.Timer(seconds, process.kill)
        watch.daemon = True
        watch.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline(8 * CHARACTERS)  # JSON takes up to 6 bytes for one
        except OSError:
            line = b""
        except BaseException:  # Ctrl-C: its answer would be taken for that of the next question
            self.stop()
            raise
        finally:
            watch.cancel()
        if not line.endswith(b"\n"):
            self.stop()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _cannot_start(got: str) -> EngineError:
    return EngineError(
        "a Python process that renders chat templates", got, "run this with a usual Python"
    )


def serve() -> None:
    """Answer lines of JSON on stdin, until it is closed. Runs in the process of a `Renderer`."""
    _limit_memory()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_seconds(int(3 * SECONDS))
        try:
            answer = _answer(request)
        except Exception as error:
            answer = {"error": str(error)[:500] or type(error).__name__}
        _limit_seconds(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "source" not in request:
        return {}
    template = _template(request["source"])
    if request["values"] is None:
        return {"text": ""}
    text = template.render(
        **request["values"],
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
    )
    if len(text) > CHARACTERS:
        raise ValueError(f"a text of {len(text)} characters")
    return {"text": text}


@lru_cache(maxsize=8)
def _template(source: str) -> Any:
    """As llama-cpp-python's ``Jinja2ChatFormatter`` makes it, which takes over transformers' ways.

    That one cannot be used here: it comes with the whole of llama.cpp.
    """
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tags around what a model says, for those who train it: passed through."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own type

        def parse(self, parser: Parser) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEBIBYTES * 1024**2, MEBIBYTES * 1024**2))


def _limit_seconds(seconds: int) -> None:
    """End with the system's own alarm, should nobody be left to kill us; 0: no more."""
    with contextlib.suppress(ImportError, AttributeError):
        import signal

        signal.alarm(seconds)


renderer = Renderer()
