"""``dspark-gguf chat``, and ``sessions``, the conversations that it saves."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from dspark_gguf.cli.options import ALL, SectionedCommand, debug, settings_options
from dspark_gguf.cli.start import open_pair, say
from dspark_gguf.config import Settings
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.paths import MIB
from dspark_gguf.visible import counted

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair


def _of_the_session(session: str | None, private: bool) -> dict[str, Any]:
    """The settings saved with a conversation."""
    if not session:
        return {}
    from dspark_gguf.chat.saved import SavedSession

    with closing(SavedSession(session)) as saved:
        return saved.settings()


@click.command(cls=SectionedCommand)
@click.option("--session", metavar="NAME",
              help="Continue this conversation, or start it. Models, settings, transcript and "
              "caches are saved under the name; `dspark-gguf sessions` lists them.")  # fmt: skip
@click.option("--private", is_flag=True,
              help="Keep nothing: no history of what was typed, no session `last`.")  # fmt: skip
@settings_options(*ALL, below=_of_the_session)
def chat(settings: Settings, verbose: bool, session: str | None, private: bool) -> None:
    """Chat with a model; a draft makes it faster.

    Input from a pipe or a file is answered line by line: `echo Hello | dspark-gguf chat`. If a line
    fails, the exit code says so at the end. /help lists the slash commands. In a terminal, a chat
    without a name is saved as the session `last`, unless it is private.
    """
    from dspark_gguf.chat.loop import Chat
    from dspark_gguf.chat.saved import SavedSession
    from dspark_gguf.chat.session import Session
    from dspark_gguf.chat.terminal import PipeReader, Reader, Screen
    from dspark_gguf.chat.think import note_if_fixed
    from dspark_gguf.chat.transcript import last_turns, with_absolute_paths

    if session and private:
        raise UsageError("--session saves the chat, --private does not", "Use one of them.")
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    saved = SavedSession(session) if session else None
    if saved:
        settings = with_absolute_paths(settings)
    elif typed and not private:
        try:
            saved = SavedSession.last()
        except DSparkError as error:  # chat all the same
            say(f"note: this conversation will not be saved: {error}")
    with closing(saved) if saved else nullcontext(), ExitStack() as opened:

        def load(settings: Settings) -> Pair:
            opened.close()
            return opened.enter_context(open_pair(settings, verbose))

        talk, screen = Session(load(settings), settings), Screen()
        note_if_fixed(talk.pair.template, settings.chat.think, say)
        for line in talk.leave_out(saved.settings() if saved and session else {}):
            say(line)
        if saved and session and (restored := saved.restore(talk)):
            say(restored)
        reader: Reader = PipeReader(sys.stdin.buffer)
        if typed:
            from dspark_gguf.chat.keyboard import TerminalReader

            reader = TerminalReader(private)
            for message in last_turns(talk, 1, short=True):
                screen.note(message)
            say("/help lists the commands; Ctrl-D leaves")
        Chat(talk, screen, reader, saved, load).run()


@click.group(invoke_without_command=True)
@click.pass_context
def sessions(context: click.Context) -> None:
    """List the conversations that `chat --session NAME` can continue."""
    if context.invoked_subcommand is None:
        context.invoke(list_sessions)


@sessions.command("list")
def list_sessions() -> None:
    """List each session's name, time, messages and size, newest first."""
    from dspark_gguf.chat.saved import list_sessions as saved

    entries = saved()
    if not entries:
        click.echo("no saved sessions: `dspark-gguf chat --session NAME` starts one", err=True)
    for entry in entries:
        when = f"{datetime.fromtimestamp(entry.modified):%Y-%m-%d %H:%M}"
        messages = "damaged" if entry.messages is None else counted(entry.messages, "message")
        click.echo(f"{entry.name:<24}  {when}  {messages:<14}  {entry.size / MIB:.1f} MiB")


@sessions.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@debug
def remove(names: tuple[str, ...]) -> None:
    """Delete sessions with their transcripts and caches."""
    from dspark_gguf.chat.saved import delete_session

    for name in names:
        delete_session(name)
        click.echo(f"deleted {name}")
