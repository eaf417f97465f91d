"""``dspark-gguf models``."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.cli.options import debug
from dspark_gguf.errors import UsageError
from dspark_gguf.visible import as_json as json_line
from dspark_gguf.visible import visible


@click.command()
@click.argument("name", required=False, shell_complete=VALUES["pair"])
@click.option(
    "--local", is_flag=True, help="List GGUF files of other programs on this machine instead."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@debug
def models(name: str | None, local: bool, as_json: bool) -> None:
    """List pairs of target and draft that people use, or show everything about the pair NAME.

    With --local, list the GGUF files of Ollama, LM Studio, llama.cpp and the Hugging Face cache.
    Those that are not models come last, with what they are.
    """
    from dspark_gguf.catalog import listing

    if local:
        if name:
            raise UsageError("--local alone", f"a name too, {name}", "leave one of them out")
        from dspark_gguf.catalog.local import local_models
        from dspark_gguf.engine import library

        library.set_command_log()
        left_out: list[str] = []
        found = local_models(left_out)
        values = [{**asdict(model), "path": str(model.path)} for model in found]
        text = visible(listing.local_text(found, left_out))
        click.echo(json_line(values, sys.stdout) if as_json else text)
        return

    from dspark_gguf.catalog.pairs import known_pairs, similar_names

    pairs = [pair for pair in known_pairs() if name in (None, pair.name)]
    if not pairs and name:
        raise UsageError(
            "a pair of the list", f"{name!r} (similar: {similar_names(name)})",
            "see `dspark-gguf models`",
        )  # fmt: skip
    memory = listing.machine_gigabytes()
    rows = [listing.facts(pair, memory) for pair in pairs]
    if as_json:
        click.echo(json_line(rows, sys.stdout))
    elif name:
        click.echo(listing.pair_text(rows[0]))
    else:
        click.echo(listing.pairs_text(rows, memory))
