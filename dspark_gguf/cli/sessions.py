"""``dspark-gguf sessions``."""

from __future__ import annotations

import click

_MIB = 1024**2


@click.group(invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """List the conversations that `chat --session NAME` goes on with."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
def list_sessions() -> None:
    """Name, time, messages and size of each, the newest first."""
    from datetime import datetime

    from dspark_gguf.chat.shelf import sessions as kept

    for entry in kept():
        when = f"{datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}"
        messages = "damaged" if entry.messages is None else f"{entry.messages} messages"
        click.echo(f"{entry.name:<24}  {when}  {messages:<14}  {entry.size / _MIB:.1f} MiB")


@sessions.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def remove(names: tuple[str, ...]) -> None:
    """Delete sessions: transcript and caches."""
    from dspark_gguf.chat.shelf import forget

    for name in names:
        forget(name)
        click.echo(f"deleted {name}")
