"""``dspark-gguf bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, chosen_settings, settings_from
from dspark_gguf.cli.start import loaded


@click.command(cls=SectionedCommand)
@click.option("--prompts", type=Path, help="JSON lines of domain and prompt. [ours]")
@click.option("--domains", metavar="NAME,...", help="Kinds of text. [all]")
@click.option("--per-domain", type=click.IntRange(0),
              help="Prompts of each kind; 0: all. [2; quick: 1]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(8, 100_000), help="Of an answer. [48; quick: 32]")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1, 1000),
              help="Turns of each prompt.")  # fmt: skip
@click.option("--ways", metavar="NAME,...",
              help="plain, fixed-K, K-at-P, model, block, lookup, cascade, optimal. "
              "[plain, fixed-1, fixed-3, fixed-8, each drafter, optimal]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Half a minute: greedy, few ways, one prompt a kind.")
@click.option("--peer", is_flag=True,
              help="Also llama-cpp-python's own loop and prompt lookup, and llama-server where it "
              "is on the PATH.")  # fmt: skip
@click.option("--report", type=Path, metavar="DIR", help="Write a page about it: DIR/index.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object alone.")
@chosen_settings("Models", "Sampling", "Speculation", "Loading the target", "Loading the draft",
                 without=("speculation.learn",))  # fmt: skip
def bench(
    prompts: Path | None,
    domains: str | None,
    per_domain: int | None,
    tokens: int | None,
    repeats: int,
    ways: str | None,
    quick: bool,
    peer: bool,
    report: Path | None,
    as_json: bool,
    config: str | None,
    show_config: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Measure ways of decoding side by side, on your machine and models.

    Plain decoding, fixed drafts, each drafter and the default take turns on the same prompts, at
    temperature 0 and 0.7 unless --temp is given. All speeds are ratios to plain decoding in the
    same turn, for each kind of text. Options of speculation make one more way, `yours`. Ctrl-C
    ends it and prints what was measured so far. The last line is a JSON object.
    """
    settings = settings_from(config, options)
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return 0

    from dspark_gguf.config import Speculation
    from dspark_gguf.measure.bench.plan import make_plan
    from dspark_gguf.measure.bench.run import Bench

    plan = make_plan(
        settings,
        prompts=prompts,
        domains=_words(domains),
        per_domain=per_domain,
        tokens=tokens,
        repeats=repeats,
        ways=_words(ways),
        quick=quick,
        peer=peer,
        report=report,
        as_json=as_json,
    )
    measured = settings.model_copy(update={"speculation": Speculation(learn=False)})
    with loaded(measured, verbose) as pair:
        return Bench(pair, settings, plan).run(click.echo)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())
