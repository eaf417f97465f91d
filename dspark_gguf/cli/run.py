"""``dspark-gguf run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dspark_gguf.cli.options import SectionedCommand, settings_from, settings_options
from dspark_gguf.cli.start import loaded
from dspark_gguf.errors import UsageError


@click.command(cls=SectionedCommand)
@click.argument("prompt", required=False)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--raw", is_flag=True, help="The prompt as it is, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path),
    help='Answer every {"prompt"} or {"messages"} line of a file.',
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="With --jsonl: results file; resumes it.",
)
@click.option("--check", is_flag=True, help="Compare with plain decoding, greedy.")
@settings_options
def run(
    prompt: str | None,
    file: Path | None,
    raw: bool,
    as_json: bool,
    jsonl: Path | None,
    output: Path | None,
    check: bool,
    config: str | None,
    show_config: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Answer one prompt: an argument, a file, stdin, or several of them joined.

    Only the answer goes to stdout. Exit codes: 0 done, 1 failure, 2 wrong use, 3 models that do
    not fit each other, 4 out of memory or context, 130 interrupted.
    """
    settings = settings_from(config, options)
    if show_config:
        click.echo(settings.as_yaml(), nl=False)
        return 0
    if output and not jsonl:
        raise UsageError("--output together with --jsonl", "--output alone", "add --jsonl FILE")
    if jsonl and (prompt or file or raw or check):
        raise UsageError("--jsonl alone", "another prompt, --raw or --check", "leave one out")

    from dspark_gguf.chat import once
    from dspark_gguf.chat.batch import read_jobs

    if jsonl:
        jobs = read_jobs(jsonl)
        with loaded(settings, verbose) as pair:
            return once.run_batch(pair, settings, jobs, output)
    text = once.read_prompt(prompt, file)
    with loaded(settings, verbose) as pair:
        if check:
            from dspark_gguf.measure.check import report

            return report(pair, settings, once.encode(pair, settings, text, raw), as_json)
        return once.run_prompt(pair, settings, text, raw, as_json)
