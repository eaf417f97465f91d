"""``dspark-gguf replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dspark_gguf.cli.options import debug
from dspark_gguf.visible import visible

if TYPE_CHECKING:
    from dspark_gguf.measure.compare import Grid
    from dspark_gguf.measure.replay import Result


@click.command()
@click.option(
    "--chains",
    type=click.Path(path_type=Path),
    required=True,
    help="Recorded chains, from `trace`.",
)
@click.option(
    "--table", type=click.Path(path_type=Path), required=True, help="Costs, from `profile --json`."
)
@click.option("--rule", default="optimal", show_default=True, metavar="NAME[:OPTION=VALUE,...]",
              help="fixed:max=3, threshold:p=0.5,max=8, prefix:max=8, optimal:max=12, lookup, "
              "cascade:looks=12.")  # fmt: skip
@click.option(
    "--warm", type=click.Path(path_type=Path), help="Chains that the rule learns from first."
)
@click.option("--grid", is_flag=True, help="Compare with 37 static settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug
def replay(
    chains: Path, table: Path, rule: str, warm: Path | None, grid: bool, as_json: bool
) -> None:
    """Replay a stopping rule on recorded chains: exact, without a model or a clock."""
    from dspark_gguf.cost import load_table
    from dspark_gguf.measure.chains import load_chains
    from dspark_gguf.measure.compare import Grid, play

    costs, texts = load_table(table), load_chains(chains)
    result = play(rule, texts, costs, load_chains(warm) if warm else ())
    static = Grid.of(texts, costs) if grid else None
    if as_json:
        click.echo(json.dumps(result.as_dict(rule) | (static.as_dict() if static else {})))
    else:
        click.echo(visible(_text(rule, result, static)))


def _text(rule: str, result: Result, static: Grid | None) -> str:
    lines = [f"{'':14}{'tokens':>8}{'x plain':>9}" + ("   best static setting" if static else "")]
    for domain in (*result.domains, None):
        sums = result.total if domain is None else result.domains[domain]
        line = f"{domain or 'all':14}{sums.tokens:8}{sums.speedup(result.plain_second):9.3f}"
        if static:
            name, speedup = static.best(domain)
            line += f"{speedup:8.3f}  {name}"
        lines.append(line)
    lines.append(
        f"{rule}: {result.rounds} rounds, {result.drafted} looks, {result.verified} verified, "
        f"{result.accepted} accepted"
    )
    return "\n".join(lines)
