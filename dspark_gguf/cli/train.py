"""``dspark-gguf train``."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import click

from dspark_gguf.cli.options import FILE, SectionedCommand, settings_options
from dspark_gguf.cli.start import say
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError


def _number(ctx: click.Context, option: click.Parameter, value: float) -> Any:
    """Refuse nan and inf, which click takes for numbers of a range."""
    if not isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", ctx, option)
    return value


@click.command(cls=SectionedCommand)
@click.option("-o", "--output", type=FILE, required=True, help="Draft to write: DRAFT.gguf.")
@click.option("--hours", default=8.0, show_default=True, type=click.FloatRange(0, min_open=True),
              callback=_number, help="For everything, in all runs together.")  # fmt: skip
@click.option("--work", type=FILE, help="Folder to work in and to go on from. [OUTPUT.work]")
@click.option("--prompts", type=FILE,
              help="JSON lines with prompt. [the target writes them itself]")  # fmt: skip
@click.option("--disk", default=20.0, show_default=True, type=click.FloatRange(0), metavar="GB",
              callback=_number,
              help="For what is recorded of the target; 0: nothing, it reads again.")  # fmt: skip
@click.option("--from", "start", type=FILE, help="Draft to go on from: DRAFT.gguf.")
@click.option("--type", default="f16", show_default=True, type=click.Choice(["f16", "q8_0"]),
              help="Type of the draft's matrices.")  # fmt: skip
@settings_options("model", "chat.chat_template", "target_options")
def train(
    settings: Settings,
    verbose: bool,
    output: Path,
    hours: float,
    work: Path | None,
    prompts: Path | None,
    disk: float,
    start: Path | None,
    type: str,
) -> None:
    """Train a draft for your own target, at home.

    The target writes conversations, what its layers read is recorded, and a small block draft
    (DSpark) learns to guess what comes next. Needs the extra `train` (torch), takes hours, and says
    first what it will take. Ctrl-C keeps everything: the same command goes on from there, with more
    --hours too. At the end the draft is served on prompts that it has not seen.
    """
    from dspark_gguf.catalog import resolve
    from dspark_gguf.engine import library
    from dspark_gguf.train.plan import Job
    from dspark_gguf.train.report import as_text
    from dspark_gguf.train.run import Training, require_libraries

    require_libraries()
    if output.suffix != ".gguf":
        raise UsageError(f"{output} is not the name of a model", "Name the draft FILE.gguf.")
    library.set_command_log(verbose)
    target, _ = resolve(settings.model, None, say)
    folder = work or output.with_name(output.name + ".work")
    job = Job(Path(target), output, folder, hours, prompts, disk, start, type)
    training = Training(job, settings.target_options, say, None, settings.chat.chat_template)
    click.echo(as_text(training.run(), folder))
    click.echo(f"the draft: {output}")
