"""The command line: commands with their options, no logic.

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
from dspark_gguf.cli.chat import chat, sessions
from dspark_gguf.cli.completion import completion
from dspark_gguf.cli.lookup import lookup
from dspark_gguf.cli.measure import bench, calibrate, doctor, profile, replay, trace
from dspark_gguf.cli.models import inspect, models, pull, suggest
from dspark_gguf.cli.run import run
from dspark_gguf.cli.serve import serve
from dspark_gguf.cli.start import say, settle
from dspark_gguf.cli.train import train
from dspark_gguf.errors import Cancelled, DSparkError

#: The commands as ``--help`` lists them, each in a line of 80 columns.
_GROUPS: dict[str, dict[click.Command, str]] = {
    "Talk": {
        chat: "chat with a model; a draft makes it faster",
        run: "answer a prompt, or a file of them, for scripts",
        serve: "serve models over HTTP, as OpenAI and Anthropic do",
        sessions: "list or delete saved conversations",
    },
    "Models": {
        models: "pairs for this machine, and files on it",
        suggest: "drafts for your model, and how fast each is here",
        pull: "download a pair or a model",
        inspect: "describe a GGUF file",
        lookup: "prepare texts of your own to copy drafts from",
        train: "train a draft for your own model",
    },
    "Measure": {
        doctor: "is it faster here, and if not, why not",
        bench: "compare ways of decoding on your machine",
        profile: "what a pass of each model costs here",
        calibrate: "check how well the draft's confidence is calibrated",
        trace: "record what a draft guesses",
        replay: "try a stopping rule on recorded guesses",
    },
    "Shell": {completion: "print the script that completes commands and options"},
}


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
        except (KeyboardInterrupt, click.Abort, Cancelled):
            code = Cancelled.exit_code
        except Exception as error:
            if "--debug" in words:
                traceback.print_exc()
            code = _explain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In groups, as a newcomer looks for them."""
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(each.name or "", about) for each, about in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; it is no error if `| head -1` has read enough (click thinks it is)."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            return 0
        return code


def _explain(error: Exception) -> int:
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    code, text = 1, f"unexpected {type(error).__name__}: {error}. --debug shows where."
    if isinstance(error, DSparkError):
        code, text = error.exit_code, str(error)
    elif isinstance(error, MemoryError):
        code, text = 4, "out of memory. Use a smaller model or --ctx-size."
    elif isinstance(error, OSError) and error.strerror:
        place = error.filename or ("stdout" if _is_stuck() else "a file")
        text = f"cannot read or write {place}: {error.strerror}. Check the path and the free space."
    say(f"dspark-gguf: {text}")
    return code


def _is_stuck() -> bool:
    """Whether stdout cannot even take a newline; then its buffer is dropped."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return True
    return False


def _drop_output() -> None:
    """Drop buffered output, or Python would report it again when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dspark-gguf")
def main() -> None:
    """Speculative decoding for llama.cpp: the target's own answers, sooner.

    A small draft model guesses; the large target checks all guesses in one pass. Begin with
    `dspark-gguf chat`, and `dspark-gguf models` for models of your own.
    """


for _commands in _GROUPS.values():
    for _command in _commands:
        main.add_command(_command)
