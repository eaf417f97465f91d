"""``dspark-gguf trace``."""

from __future__ import annotations

from pathlib import Path

import click

from dspark_gguf.cli.options import PAIR, SectionedCommand, settings_options
from dspark_gguf.cli.start import loaded
from dspark_gguf.config import Settings
from dspark_gguf.visible import visible


@click.command(cls=SectionedCommand)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write, such as chains.npz.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="JSON lines with domain and prompt. [built in]",
)
@click.option("--positions", default=130, show_default=True, type=click.IntRange(1, 100_000),
              help="Tokens of each answer.")  # fmt: skip
@click.option("--depth", default=12, show_default=True, type=click.IntRange(1, 64),
              help="Draft tokens at each of them.")  # fmt: skip
@settings_options(*PAIR, "chat.chat_template")
def trace(
    output: Path,
    prompts: Path | None,
    positions: int,
    depth: int,
    settings: Settings,
    verbose: bool,
) -> None:
    """Record the draft's guesses at every position of greedy answers, for `replay`."""
    from dspark_gguf.chat.progress import tracked
    from dspark_gguf.measure.chains import save_chains
    from dspark_gguf.measure.prompts import read_prompts
    from dspark_gguf.measure.trace import record

    wanted = read_prompts(prompts)
    with loaded(settings, verbose) as pair:
        texts = [record(pair, prompt, positions, depth) for prompt in tracked(wanted, len(wanted))]
    save_chains(output, texts)
    positions = sum(text.positions for text in texts)
    click.echo(visible(f"{len(texts)} texts, {positions} positions: {output}"))
