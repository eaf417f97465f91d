"""``dspark-gguf calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dspark_gguf.cli.options import PAIR, SectionedCommand, settings_options
from dspark_gguf.cli.start import loaded
from dspark_gguf.config import Settings

if TYPE_CHECKING:
    from dspark_gguf.measure.chains import Chains


@click.command(cls=SectionedCommand)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="JSON lines with domain and prompt. [built in]",
)
@click.option(
    "--chains",
    type=click.Path(path_type=Path),
    help="Chains that `trace` recorded, instead of a model.",
)
@click.option("--positions", default=130, show_default=True, type=click.IntRange(1, 100_000),
              help="Tokens of each answer.")  # fmt: skip
@click.option("--depth", default=8, show_default=True, type=click.IntRange(1, 64),
              help="Draft tokens at each of them.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), help="Reliability diagram: FILE.svg.")
@settings_options(*PAIR, "chat.chat_template")
def calibrate(
    prompts: Path | None,
    chains: Path | None,
    positions: int,
    depth: int,
    plot: Path | None,
    settings: Settings,
    verbose: bool,
) -> None:
    """Check if the draft's confidence is true, before and after Sequential Temperature Scaling.

    What is recorded with a model also adds to what the scheduler knows about the pair.
    """
    from dspark_gguf.measure.chains import load_chains
    from dspark_gguf.measure.charts import bars, require_svg, save_chart
    from dspark_gguf.measure.reliability import Reliability

    if plot:
        require_svg(plot)
    found = Reliability.of(
        load_chains(chains) if chains else _recorded(settings, verbose, prompts, positions, depth)
    )
    click.echo(found.as_text())
    for name, (told, seen) in found.curves().items():
        click.echo(f"\nreliability of the first token, {name}: told, and the share that survived")
        click.echo(bars({f"{x:.2f}": y for x, y in zip(told, seen, strict=True)}, most=1.0))
    if plot:
        save_chart(plot, found.chart())


def _recorded(
    settings: Settings, verbose: bool, prompts: Path | None, positions: int, depth: int
) -> list[Chains]:
    from dspark_gguf.chat.progress import tracked
    from dspark_gguf.measure.prompts import read_prompts
    from dspark_gguf.measure.trace import learn, record

    wanted = read_prompts(prompts)
    with loaded(settings, verbose) as pair:
        texts = [record(pair, prompt, positions, depth) for prompt in tracked(wanted, len(wanted))]
        if settings.speculation.mode == "auto":
            learn(pair, settings.speculation, texts)
    return texts
