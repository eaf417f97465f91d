"""``dspark-gguf chat``."""

from __future__ import annotations

import sys
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, settings_from, settings_options
from dspark_gguf.cli.start import loaded, say


@click.command(cls=SectionedCommand)
@settings_options
def chat(config: str | None, show_config: bool, verbose: bool, **options: Any) -> None:
    """Chat with a model; a draft makes it faster.

    Lines that are no terminal's are answered one by one: `echo Hello | dspark-gguf chat`.
    """
    settings = settings_from(config, options)
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return

    from dspark_gguf.chat.loop import Chat
    from dspark_gguf.chat.session import Session
    from dspark_gguf.chat.terminal import PipeReader, Reader, Screen, TerminalReader

    with loaded(settings, verbose) as pair:
        screen = Screen()
        typed = sys.stdin.isatty() and sys.stdout.isatty()
        reader: Reader = TerminalReader() if typed else PipeReader(sys.stdin.buffer)
        if typed:
            say("/help lists the commands; Ctrl-D leaves")
        Chat(Session(pair, settings), screen, reader).run()
