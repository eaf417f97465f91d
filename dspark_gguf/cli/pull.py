"""``dspark-gguf pull``."""

from __future__ import annotations

import click

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.cli.options import debug
from dspark_gguf.cli.start import say


@click.command()
@click.argument("name", shell_complete=VALUES["pair"])
@debug
def pull(name: str) -> None:
    """Download a pair that `dspark-gguf models` lists, or one model as org/repo:quant.

    Files go where huggingface_hub keeps them (HF_HOME moves that), with its tokens (HF_TOKEN,
    `hf auth login`) and its offline mode (HF_HUB_OFFLINE=1). An interrupted download resumes; a
    file whose SHA-256 is not the one that the hub states is deleted. The paths are printed on
    stdout.
    """
    from dspark_gguf.catalog.resolve import known_pair
    from dspark_gguf.catalog.resolve import pull as download
    from dspark_gguf.engine import library

    library.set_command_log()
    try:
        paths = download(name, say)
    except KeyboardInterrupt:
        say("stopped; what came is kept, and the same command goes on from there")
        raise
    for path in paths:
        click.echo(path)
    say(f"use it: dspark-gguf chat -m {name}" + ("" if known_pair(name) else " -d DRAFT"))
