"""What every command does first: settings, models, the start-up line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from dspark_gguf.config import Settings
from dspark_gguf.visible import visible

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair


def say(line: str) -> None:
    """A line on stderr."""
    click.echo(visible(line), err=True)


@contextmanager
def loaded(settings: Settings, verbose: bool, quiet: bool = False) -> Iterator[Pair]:
    """Both models, with one line on stderr that says where they sit, and what cannot be done.

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
        Sampler.of(settings.sampling, pair.vocabulary)  # refuses what this model cannot do
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
