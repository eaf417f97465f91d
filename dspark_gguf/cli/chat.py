"""``dspark-gguf chat``."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, settings_from, settings_options
from dspark_gguf.cli.start import loaded, say
from dspark_gguf.errors import DSparkError


@click.command(cls=SectionedCommand)
@click.option("--session", metavar="NAME",
              help="Go on with this conversation, or begin it: models, settings, transcript and "
              "caches are kept under the name. `dspark-gguf sessions` lists them.")  # fmt: skip
@settings_options
def chat(
    session: str | None, config: str | None, show_config: bool, verbose: bool, **options: Any
) -> None:
    """Chat with a model; a draft makes it faster.

    Lines that are no terminal's are answered one by one: `echo Hello | dspark-gguf chat`. /help
    lists the slash commands. Where one of a pipe's lines fails, the exit code says so at the end.
    In a terminal, a chat without a name is kept as the session `last`.
    """
    settings = settings_from(config, options)
    if show_config and not session:
        click.echo(settings.as_yaml(), nl=False)
        return

    from dspark_gguf.chat.kept import Kept, anchored
    from dspark_gguf.chat.loop import Chat
    from dspark_gguf.chat.session import Session
    from dspark_gguf.chat.terminal import PipeReader, Reader, Screen, TerminalReader

    typed = sys.stdin.isatty() and sys.stdout.isatty()
    kept: Kept | None = None
    if session:
        kept = Kept(session)
        settings = anchored(settings_from(config, options, kept.settings()))
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return
    if typed and not kept:
        try:
            kept = Kept.last()
        except DSparkError as error:  # no reason not to chat
            say(f"note: this conversation will not be kept: {error}")
    with closing(kept) if kept else nullcontext(), loaded(settings, verbose) as pair:
        talk = Session(pair, settings)
        if kept and session and (restored := kept.restore(talk)):
            say(restored)
        reader: Reader = TerminalReader() if typed else PipeReader(sys.stdin.buffer)
        if typed:
            say("/help lists the commands; Ctrl-D leaves")
        Chat(talk, Screen(), reader, kept).run()
