"""``dspark-gguf run``."""

from __future__ import annotations

from pathlib import Path

import click

from dspark_gguf.cli.options import ALL, FILE, SectionedCommand, settings_options
from dspark_gguf.cli.start import open_pair, say
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError


@click.command(cls=SectionedCommand)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]")
@click.option("-f", "--file", type=FILE, help="Prompt file; -: stdin.")
@click.option("--raw", is_flag=True, help="Use the prompt as it is, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--jsonl", type=FILE,
              help='Answer every {"prompt"} or {"messages"} line of a file; -: stdin.')  # fmt: skip
@click.option("-o", "--output", type=FILE, help="With --jsonl: results file; resumes it.")
@click.option("--shard", metavar="I/N",
              help="With --jsonl: answer every N-th line only, from line I on.")  # fmt: skip
@click.option("--parallel", type=click.IntRange(min=1), metavar="N",
              help="With --jsonl: answer N lines at once. Default: as many as pay.")  # fmt: skip
@click.option("--unordered", is_flag=True,
              help="With --jsonl: print results as they finish. An --output file always gets "
                   "them so, and is sorted at the end.")  # fmt: skip
@click.option("--keep-errors", is_flag=True, help="With -o: do not retry failed lines.")
@click.option("--check", is_flag=True, help="Compare with plain greedy decoding.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on stderr but errors.")
@settings_options(*ALL)
def run(
    prompts: tuple[str, ...],
    file: Path | None,
    raw: bool,
    as_json: bool,
    jsonl: Path | None,
    output: Path | None,
    shard: str | None,
    parallel: int | None,
    unordered: bool,
    keep_errors: bool,
    check: bool,
    quiet: bool,
    settings: Settings,
    verbose: bool,
) -> int:
    """Answer one prompt: an argument, a file, stdin, or several of them joined.

    Stdin is read if there is neither an argument nor -f, or if one of them is -. It is also read
    if it was meant for this command, as in `git diff | dspark-gguf run "Explain."`. The input of a
    calling shell or loop is left alone, and a program that sends nothing is not waited for.

    Only the answer goes to stdout. Exit codes: 0 done, 1 failure, 2 wrong use, 3 models that do
    not fit each other, 4 out of memory or context, 130 interrupted.
    """
    if len(prompts) > 1:
        raise UsageError(f"expected one prompt, got {len(prompts)}", "Put the prompt in quotes.")
    prompt = prompts[0] if prompts else None
    of_a_batch = {
        "--output": output, "--shard": shard, "--parallel": parallel, "--unordered": unordered,
    }  # fmt: skip
    for name, given in of_a_batch.items():
        if given not in (None, False) and not jsonl:
            raise UsageError(f"{name} works only with --jsonl", "Add --jsonl FILE.")
    if keep_errors and not output:
        raise UsageError("--keep-errors works only with --output", "Add -o FILE.")
    if jsonl and (prompt or file or raw or check):
        problem = "--jsonl does not go with another prompt, --raw or --check"
        raise UsageError(problem, "Leave one out.")

    from dspark_gguf.chat.scripted import encode, run_batch, run_prompt
    from dspark_gguf.chat.stdin import read_prompt
    from dspark_gguf.chat.think import note_if_fixed

    note = str if quiet else say
    if jsonl:
        from dspark_gguf.chat.answers import MAX_AT_ONCE
        from dspark_gguf.chat.jobs import read_jobs, select_shard
        from dspark_gguf.chat.results import results_in
        from dspark_gguf.chat.transcript import with_absolute_paths

        jobs, settings = read_jobs(jsonl), with_absolute_paths(settings)
        jobs = select_shard(jobs, shard) if shard is not None else jobs
        at_once = min(parallel or MAX_AT_ONCE, max(len(jobs), 1))
        with (
            results_in(output, jobs, settings, keep_errors, unordered) as results,
            open_pair(settings, verbose, quiet, at_once) as pair,
        ):
            note_if_fixed(pair.template, settings.chat.think, note)
            return run_batch(pair, settings, jobs, results, parallel)
    text = read_prompt(prompt, file)
    with open_pair(settings, verbose, quiet) as pair:
        note_if_fixed(pair.template, settings.chat.think, str if raw else note)
        if check:
            from dspark_gguf.measure.check import report

            return report(pair, settings, encode(pair, settings, text, raw), as_json)
        return run_prompt(pair, settings, text, raw, as_json)
