"""``dspark-gguf suggest``."""

from __future__ import annotations

import json

import click

from dspark_gguf.cli.options import PAIR, SectionedCommand, settings_options
from dspark_gguf.cli.start import say
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.visible import visible


@click.command(cls=SectionedCommand)
@click.option("--make-draft", type=click.Choice(["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"]),
              help="Make this quantization of the target, for use as a draft.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@settings_options(*PAIR, "speculation.draft_max")
def suggest(
    make_draft: str | None,
    as_json: bool,
    settings: Settings,
    verbose: bool,
) -> None:
    """List drafts that fit the target of -m, and the speed to expect from each on this machine.

    They are pairs of `dspark-gguf models`, files on this machine, and lower quantizations of the
    target itself; -d adds one more. Files are measured, the others are estimated.
    """
    if settings.model is None:
        raise UsageError("a target", "none", "name it with -m")

    from dspark_gguf.catalog import suggest as catalog
    from dspark_gguf.catalog.candidates import candidates, of_file
    from dspark_gguf.catalog.candidates import make_draft as make
    from dspark_gguf.catalog.listing import quoted
    from dspark_gguf.catalog.resolve import located
    from dspark_gguf.engine import library
    from dspark_gguf.engine.gguf import read_header

    library.set_command_log(verbose)
    [target] = located([(settings.model, "target")], say)
    drafts = []
    if settings.draft:
        [path] = located([(settings.draft, "draft")], say)
        drafts.append(of_file(settings.draft, "-d", path))
    if make_draft:
        path = make(target, make_draft, say)
        drafts.append(of_file(str(path), "made from the target", path))
    else:
        skipped: list[str] = []
        drafts += candidates(read_header(target), skipped)
        for line in skipped if verbose else ():
            say(f"does not fit: {line}")
    found = catalog.suggestions(target, drafts, settings, say)
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in found]))
    else:
        click.echo(visible(catalog.as_text(quoted(settings.model), found)))
