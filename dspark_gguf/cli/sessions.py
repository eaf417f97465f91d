"""``dspark-gguf sessions``."""

from __future__ import annotations

import click

from dspark_gguf.cli.options import debug

_MIB = 1024**2


@click.group(invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """List the conversations that `chat --session NAME` can continue."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
def list_sessions() -> None:
    """List name, time, messages and size of each, newest first."""
    from datetime import datetime

    from dspark_gguf.chat.saved import list_sessions as saved

    for entry in saved():
        when = f"{datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}"
        messages = "damaged" if entry.messages is None else f"{entry.messages} messages"
        click.echo(f"{entry.name:<24}  {when}  {messages:<14}  {entry.size / _MIB:.1f} MiB")


@sessions.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@debug
def remove(names: tuple[str, ...]) -> None:
    """Delete sessions: transcript and caches."""
    from dspark_gguf.chat.saved import delete_session

    for name in names:
        delete_session(name)
        click.echo(f"deleted {name}")
