"""``dspark-gguf bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, settings_options
from dspark_gguf.cli.start import loaded
from dspark_gguf.config import Settings, Speculation


@click.command(cls=SectionedCommand)
@click.option("--prompts", type=Path, help="JSON lines with domain and prompt. [built in]")
@click.option("--domains", metavar="NAME,...", help="Kinds of text. [all]")
@click.option("--per-domain", type=click.IntRange(0),
              help="Prompts for each kind of text; 0: all. [2; quick: 1]")  # fmt: skip
@click.option(
    "--tokens", type=click.IntRange(8, 100_000), help="Tokens of an answer. [48; quick: 32]"
)
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1, 1000),
              help="Turns of each prompt.")  # fmt: skip
@click.option("--ways", metavar="NAME,...",
              help="plain, fixed-K, K-at-P, model, block, lookup, cascade, optimal. "
              "[plain, fixed-1, fixed-3, fixed-8, each drafter, optimal]")  # fmt: skip
@click.option(
    "--quick", is_flag=True, help="Take half a minute: greedy, few ways, one prompt of each kind."
)
@click.option("--peer", is_flag=True,
              help="Also llama-cpp-python's own loop and prompt lookup, and llama-server where it "
              "is on the PATH.")  # fmt: skip
@click.option("--report", type=Path, metavar="DIR", help="Write a report, DIR/index.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object alone.")
@settings_options(
    *("model", "draft", "chat", "limits.stop", "sampling", "speculation"),
    *("target_options", "draft_options"),
    without=("speculation.learn", "chat.context_shift"),
)
def bench(
    settings: Settings, verbose: bool, domains: str | None, ways: str | None, **wanted: Any
) -> int:
    """Compare ways of decoding on your machine and models.

    Plain decoding, fixed drafts, each drafter and the default take turns on the same prompts, at
    temperature 0 and 0.7 unless --temp is given. All speeds are ratios to plain decoding in the
    same turn, for each kind of text. Options of speculation add one more way, `yours`.
    Ctrl-C stops and prints what was measured so far. The last line is a JSON object.
    """
    from dspark_gguf.measure.bench.plan import make_plan
    from dspark_gguf.measure.bench.run import Bench

    plan = make_plan(settings, domains=_words(domains), ways=_words(ways), **wanted)
    measured = settings.model_copy(update={"speculation": Speculation(learn=False)})
    with loaded(measured, verbose) as pair:
        return Bench(pair, settings, plan).run(click.echo)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())
