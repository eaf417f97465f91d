"""What commands do first: prepare the streams, load the models, print the start-up line."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import Cancelled
from dspark_gguf.progress import ProgressCallback, no_progress
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair
    from dspark_gguf.learned import Learned


_REPLACED = "dspark-gguf.replaced"


def settle() -> None:
    """Make stdout take any text, and replace closed streams by the null device.

    Otherwise the next file to be opened, perhaps a model's cache, would get the closed stream's
    number, and llama.cpp's messages with it. Results for a closed stdout are lost: writing fails.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            setattr(sys, name, open(null, mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    codecs.register_error(_REPLACED, _replaced)
    # "?" for characters that the encoding lacks, since people read answers. stderr escapes them.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_REPLACED)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """The raw bytes of a file name that is not text; "?" for any other character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    raw = b"".join(
        bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else b"?" for char in part
    )
    return raw, error.end


def say(line: str) -> None:
    """A line on stderr; on a terminal it breaks between words."""
    click.echo(_fitting(line, sys.stderr), err=True)


def show(as_json: bool, values: Any, text: Callable[[], str]) -> None:
    """A result on stdout: its plain values as one line of JSON, or its text."""
    click.echo(json_line(values, sys.stdout) if as_json else _fitting(text(), sys.stdout))


def _fitting(text: str, stream: TextIO) -> str:
    """The text as the stream should show it."""
    if not stream.isatty():
        return visible(text)
    from dspark_gguf.chat.wrapping import columns, folded

    return folded(visible(text), columns(stream))


def _working(quiet: bool) -> AbstractContextManager[ProgressCallback]:
    """Shows long tasks on a terminal."""
    if quiet or not sys.stderr.isatty():
        return nullcontext(no_progress)
    from dspark_gguf.chat.progress import working

    return working()


def _prepare(pair: Pair, speculation: Speculation) -> Learned | None:
    """Load the draft and measure what both models cost, if that is wanted and unknown."""
    from dspark_gguf.signals import interruptible

    if speculation.mode == "off":
        return None
    if speculation.stopping_rule in ("prefix", "optimal"):
        # In a thread that ends: OpenMP keeps threads for each that ever ran a pass, and with more
        # of them than cores, passes of whoever comes next would be slower.
        with interruptible(pair.interrupt), ThreadPoolExecutor(1) as thread:
            learned = thread.submit(pair.learned, speculation).result()
            if pair.interrupt.is_set():
                raise Cancelled
            return learned
    if speculation.drafter != "lookup":
        pair.draft_cache()
    return None


@contextmanager
def open_pair(
    settings: Settings, verbose: bool, quiet: bool = False, conversations: int = 1
) -> Iterator[Pair]:
    """Both models; lines on stderr say where they are loaded and what is not possible.

    Off a terminal only the latter do, unless `verbose` or the output is changed; with `quiet` none.
    """
    from dspark_gguf.catalog import NO_DRAFT, load_pair
    from dspark_gguf.catalog.pairs import known_pair
    from dspark_gguf.engine import library
    from dspark_gguf.engine.pair import NOT_USED
    from dspark_gguf.sampling import Sampler

    library.set_command_log(verbose)
    tell = str if quiet else say
    model, draft = settings.model, settings.draft
    if model and not draft and settings.speculation.mode == "off" and not known_pair(model):
        draft = NO_DRAFT  # none is looked for
    with _working(quiet) as now:
        pair = load_pair(
            model,
            draft,
            target_options=settings.target_options,
            draft_options=settings.draft_options,
            chat_template=settings.chat.chat_template,
            conversations=conversations,
            progress=tell,
            on_progress=now,
        )
        try:
            Sampler.of(settings.sampling, pair.vocabulary)  # refuses what this model does not allow
            learned = _prepare(pair, settings.speculation)
        except BaseException:
            pair.close()
            raise
    with pair:
        tells_all = verbose or sys.stderr.isatty() or not settings.speculation.lossless
        if tells_all:
            if pair.found:
                tell(pair.found)
            tell(pair.summary(settings.speculation))
            if learned and learned.costs.was_disturbed:
                tell("costs were measured on a busy machine: they are corrected while you use it")
        for note in pair.notes:
            if tells_all or note != NOT_USED:
                tell(f"note: {note}")
        yield pair
