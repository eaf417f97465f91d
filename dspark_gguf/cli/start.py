"""What most commands do first: load the models and print the start-up line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dspark_gguf.config import Settings
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(visible(line), err=True)


def show(as_json: bool, values: Any, text: Callable[[], str]) -> None:
    """A result on stdout: its plain values as one line of JSON, or its text."""
    click.echo(json_line(values, sys.stdout) if as_json else visible(text()))


@contextmanager
def loaded(settings: Settings, verbose: bool, quiet: bool = False) -> Iterator[Pair]:
    """Both models; lines on stderr say where they are loaded and what is not possible.

    Raises:
        DSparkError: they cannot be loaded, or do not fit each other.

    """
    from dspark_gguf.catalog import load_pair
    from dspark_gguf.engine import library
    from dspark_gguf.sampling import Sampler

    library.set_command_log(verbose)
    pair = load_pair(
        settings.model,
        settings.draft,
        target_options=settings.target_options,
        draft_options=settings.draft_options,
        chat_template=settings.chat.chat_template,
        progress=say,
    )
    with pair:
        Sampler.of(settings.sampling, pair.vocabulary)  # refuses what this model does not allow
        if settings.speculation.mode != "off":
            if settings.speculation.drafter != "lookup":
                pair.draft_cache()
            if settings.speculation.stopping_rule in ("prefix", "optimal"):
                pair.learned(settings.speculation, say)
        if not quiet:
            say(pair.summary(settings.speculation))
        for note in pair.notes:
            say(f"note: {note}")
        yield pair
