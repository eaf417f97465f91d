"""``dspark-gguf doctor``."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click
from click.core import ParameterSource

from dspark_gguf.cli.options import SectionedCommand, settings_from, settings_options
from dspark_gguf.cli.start import say
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible


@click.command(cls=SectionedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options
def doctor(
    as_json: bool,
    config: str | None,
    show_config: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Check this machine, this build and a pair: one screen to paste into an issue.

    Versions, devices, whether the models fit and fit each other, what passes cost here, what speed
    to expect, and what to change (!: wrong, -: could be better). Paths are shortened and user
    names left out. Without -m, the demo pair. Exit codes: 0 well, 1 something is wrong, 3 models
    that do not fit each other.
    """
    settings = settings_from(config, options)
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return 0

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
