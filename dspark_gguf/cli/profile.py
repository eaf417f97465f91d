"""``dspark-gguf profile``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dspark_gguf.cli.options import PAIR, SectionedCommand, settings_options
from dspark_gguf.cli.start import loaded
from dspark_gguf.config import Settings


@click.command(cls=SectionedCommand)
@click.option("--rows", default=17, show_default=True, type=click.IntRange(2, 65),
              help="Maximum rows of a pass.")  # fmt: skip
@click.option("--depth", "depths", multiple=True, type=click.IntRange(1),
              help="Tokens of context; can be repeated. [16 and 1024]")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it: FILE.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the table that `replay` reads.")
@click.option("--reset", is_flag=True, help="Forget what was learned about all pairs, and stop.")
@settings_options(*PAIR)
def profile(
    rows: int,
    depths: tuple[int, ...],
    plot: Path | None,
    as_json: bool,
    reset: bool,
    settings: Settings,
    verbose: bool,
) -> None:
    """Measure what a pass of each model costs on this machine: what the scheduler relies on."""
    if reset:
        from dspark_gguf.learned import forget_all

        click.echo(f"forgotten: what was learned of {forget_all()} pairs")
        return

    from dspark_gguf.measure.charts import require_svg, save_chart
    from dspark_gguf.measure.profile import as_text, cost_chart
    from dspark_gguf.measure.profile import profile as measure

    if plot:
        require_svg(plot)
    with loaded(settings, verbose) as pair:
        tables = measure(pair, depths, rows)
    click.echo(json.dumps(tables[0].as_dict()) if as_json else as_text(tables))
    if plot:
        save_chart(plot, cost_chart(tables, in_ms=True))
