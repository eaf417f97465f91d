"""``dspark-gguf inspect``."""

from __future__ import annotations

import sys

import click

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.cli.options import debug
from dspark_gguf.cli.start import say
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible


@click.command()
@click.argument("model", shell_complete=VALUES["model"])
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@debug
def inspect(model: str, as_json: bool) -> None:
    """Describe a GGUF without loading its weights; for a draft, also which target it fits.

    MODEL is a file, org/repo:quant, or a pair's name, which means its target.
    """
    from dspark_gguf.catalog.inspect import as_text
    from dspark_gguf.catalog.inspect import inspect as facts_of
    from dspark_gguf.catalog.resolve import located
    from dspark_gguf.engine import library

    library.set_command_log()
    facts = facts_of(located([(model, "target")], say)[0])
    click.echo(json_line(facts, sys.stdout) if as_json else visible(as_text(facts)))
