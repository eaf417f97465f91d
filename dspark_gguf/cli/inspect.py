"""``dspark-gguf inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.gguf")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what a GGUF is, without loading its weights; of a draft, which target it fits."""
    from dspark_gguf.catalog.inspect import as_text
    from dspark_gguf.catalog.inspect import inspect as facts_of

    facts = facts_of(file)
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else as_text(facts))
