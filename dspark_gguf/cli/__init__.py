"""The command line: one file per command, no logic.

Nothing here imports numpy, llama.cpp or the terminal libraries before a command runs, so that
``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import click

from dspark_gguf import __version__
from dspark_gguf.cli.bench import bench
from dspark_gguf.cli.calibrate import calibrate
from dspark_gguf.cli.chat import chat
from dspark_gguf.cli.completion import completion
from dspark_gguf.cli.doctor import doctor
from dspark_gguf.cli.inspect import inspect
from dspark_gguf.cli.lookup import lookup
from dspark_gguf.cli.models import models
from dspark_gguf.cli.profile import profile
from dspark_gguf.cli.pull import pull
from dspark_gguf.cli.replay import replay
from dspark_gguf.cli.run import run
from dspark_gguf.cli.sessions import sessions
from dspark_gguf.cli.streams import settle
from dspark_gguf.cli.suggest import suggest
from dspark_gguf.cli.trace import trace
from dspark_gguf.errors import DSparkError
from dspark_gguf.visible import visible

INTERRUPTED = 130


class Program(click.Group):
    """Translates every way a command can end into one message and an exit code.

    0 done, 1 failure, 2 wrong use, 3 models that do not fit each other, 4 out of memory or
    context, 130 interrupted.
    """

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """Run and exit."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        settle()
        try:
            code = super().main(words, *rest, **extra)
        except (KeyboardInterrupt, click.Abort):
            code = INTERRUPTED
        except Exception as error:
            if "--debug" in words:
                traceback.print_exc()
            code = _explain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; `| head -1` that has seen enough is no error (click calls it one)."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain once more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code


def _explain(error: Exception) -> int:
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, DSparkError):
        click.echo(f"dspark-gguf: {visible(str(error))}", err=True)
        return error.exit_code
    if isinstance(error, MemoryError):
        click.echo("dspark-gguf: out of memory; use a smaller model or --ctx-size", err=True)
        return 4
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "a file"
        do = "check the place and the space on the disk"
        line = f"dspark-gguf: needed to read or write {place}, got {error.strerror}; {do}"
        click.echo(visible(line), err=True)
        return 1
    kind = type(error).__name__
    click.echo(visible(f"dspark-gguf: unexpected {kind}: {error}; --debug shows where"), err=True)
    return 1


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dspark-gguf")
def main() -> None:
    """Speculative decoding for llama.cpp: the target's own answers, sooner.

    A small draft model guesses; the large target checks all guesses in one pass.
    """


main.add_command(bench)
main.add_command(calibrate)
main.add_command(chat)
main.add_command(completion)
main.add_command(doctor)
main.add_command(inspect)
main.add_command(lookup)
main.add_command(models)
main.add_command(profile)
main.add_command(pull)
main.add_command(replay)
main.add_command(run)
main.add_command(sessions)
main.add_command(suggest)
main.add_command(trace)
