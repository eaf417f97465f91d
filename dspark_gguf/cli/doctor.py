"""``dspark-gguf doctor``."""

from __future__ import annotations

import sys
import traceback

import click
from click.core import ParameterSource

from dspark_gguf.cli.options import PAIR, SectionedCommand, settings_options
from dspark_gguf.cli.start import say
from dspark_gguf.config import Settings
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible


@click.command(cls=SectionedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*PAIR, "speculation.draft_max", "sampling.temperature", "chat.chat_template")
def doctor(
    as_json: bool,
    settings: Settings,
    verbose: bool,
) -> int:
    """Diagnose this machine, this build and a pair, in one screen for a bug report.

    It shows versions and devices, whether the models fit in memory and fit each other, what passes
    cost here, what speed to expect, and what to change (!: a problem, -: could be better). Paths
    are shortened and user names left out. Without -m it looks at the demo pair. Exit codes: 0 all
    is well, 1 a problem, 3 models that do not fit each other.
    """
    from dspark_gguf.doctor import examine

    def shown(error: Exception) -> None:
        traceback.print_exception(error)

    debug = click.get_current_context().get_parameter_source("debug") is ParameterSource.COMMANDLINE
    report = examine(settings, say, verbose, *[shown] * debug)
    if as_json:
        click.echo(json_line(report.as_dict(), sys.stdout))
    else:
        click.echo(visible(report.as_text()))
    return report.exit_code
