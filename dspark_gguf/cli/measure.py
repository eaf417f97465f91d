"""Commands that measure: bench, profile, trace, calibrate, replay and doctor."""

from __future__ import annotations

import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dspark_gguf.cli.options import FILE, PAIR, SectionedCommand, debug, settings_options
from dspark_gguf.cli.start import open_pair, say, show
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.errors import Cancelled, UsageError
from dspark_gguf.paths import require_writable
from dspark_gguf.visible import counted, visible

if TYPE_CHECKING:
    from dspark_gguf.measure.chains import Chains
    from dspark_gguf.measure.replay import Grid, Result

_prompts = click.option(
    "--prompts", type=FILE, help="JSON lines with domain and prompt. [built in]"
)
_positions = click.option("--positions", default=130, show_default=True,
    type=click.IntRange(1, 100_000), help="Tokens of each answer.")  # fmt: skip
_depth = partial(click.option, "--depth", show_default=True, type=click.IntRange(1, 64),
    help="Draft tokens at each of them.")  # fmt: skip


@click.command(cls=SectionedCommand)
@_prompts
@click.option("--domains", default="", metavar="NAME,...", help="Kinds of text. [all]")
@click.option("--per-domain", type=click.IntRange(0),
              help="Prompts for each kind of text; 0: all. [2; quick: 1]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(8, 100_000),
              help="Tokens per answer. [48; quick: 32]")  # fmt: skip
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1, 1000),
              help="Turns per prompt.")  # fmt: skip
@click.option("--methods", default="", metavar="NAME,...",
              help="plain, fixed-K, K-at-P, model, block, lookup, cascade, default. "
              "[plain, fixed-1, fixed-3, fixed-8, each drafter, default]")  # fmt: skip
@click.option("--ways", "old_methods", default="", hidden=True)  # its name in 0.1
@click.option("--quick", is_flag=True,
              help="Take half a minute: greedy, few methods, one prompt of each kind.")  # fmt: skip
@click.option("--peer", is_flag=True,
              help="Also measure llama-server, if it is on the PATH, and llama-cpp-python's own "
              "loop and prompt lookup.")  # fmt: skip
@click.option("--conversations", default="", metavar="N,...",
              help="Measure throughput of N conversations at once, such as 1,2,4,8.")  # fmt: skip
@click.option("--report", type=FILE, metavar="DIR", help="Write a report, DIR/index.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON object alone.")
@settings_options(
    *("model", "draft", "chat", "limits.stop", "sampling", "speculation"),
    *("target_options", "draft_options"),
    without=("speculation.learn", "chat.context_shift", "chat.markdown"),
)
def bench(
    settings: Settings,
    verbose: bool,
    domains: str,
    methods: str,
    old_methods: str,
    conversations: str,
    **wanted: Any,
) -> int:
    """Compare methods of decoding on your machine and models.

    Plain decoding, fixed drafts, each drafter and the default take turns on the same prompts, at
    temperatures 0 and 0.7 unless --temp is given. All speeds are ratios to plain decoding in the
    same turn, for each kind of text. Options of speculation add one more method, `yours`.
    Ctrl-C stops and prints what was measured so far. --report writes all figures to a page and to
    bench.json.
    """
    from dspark_gguf.measure.bench.plan import make_plan
    from dspark_gguf.measure.bench.run import Bench, bench_conversations

    if old_methods:
        say("--ways is now called --methods")
    methods = methods or old_methods
    plan = make_plan(settings, domains=_words(domains), methods=_words(methods), **wanted)
    measured = settings.model_copy(update={"speculation": Speculation(learn=False)})
    if counts := _counts(conversations):
        if plan.methods or plan.peer or plan.report or plan.yours:
            problem = "--conversations compares plain batching and the default alone"
            raise UsageError(problem, "Leave --methods, --peer, --report and speculation out.")
        with open_pair(measured, verbose, conversations=max(counts)) as pair:
            return bench_conversations(pair, settings, plan, counts, click.echo)
    with open_pair(measured, verbose) as pair:
        return Bench(pair, settings, plan).run(click.echo)


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of conversations; none if `text` is empty."""
    try:
        counts = tuple(sorted({int(word) for word in _words(text)}))
    except ValueError:
        counts = (0,)
    if not all(1 <= count <= 64 for count in counts):
        problem = f"--conversations {text} is no list of numbers from 1 to 64"
        raise UsageError(problem, "Write them as in 1,2,4,8.")
    return counts


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@click.command(cls=SectionedCommand)
@click.option("--rows", default=17, show_default=True, type=click.IntRange(2, 65),
              help="Maximum rows of a pass.")  # fmt: skip
@click.option("--depth", "depths", multiple=True, type=click.IntRange(1),
              help="Tokens of context; can be repeated. [16 and 1024]")  # fmt: skip
@click.option("--plot", type=FILE, help="Draw the costs: FILE.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the table that `replay` reads.")
@click.option("--reset", is_flag=True, help="Forget what was learned about all pairs, and stop.")
@settings_options(*PAIR)
def profile(
    settings: Settings, verbose: bool, plot: Path | None, as_json: bool, reset: bool, **wanted: Any
) -> int:
    """Measure what a pass of each model costs on this machine, which the scheduler relies on."""
    if reset:
        from dspark_gguf.learned import forget_all

        click.echo(f"forgotten: what was learned of {forget_all()} pairs")
        return 0

    from dspark_gguf.measure.charts import require_svg, save_chart
    from dspark_gguf.measure.profile import as_text, cost_chart
    from dspark_gguf.measure.profile import profile as measure
    from dspark_gguf.signals import interruptible

    if plot:
        require_svg(plot)
    with open_pair(settings, verbose) as pair, interruptible(pair.interrupt):
        tables = measure(pair, **wanted)
        stopped = pair.interrupt.is_set()
    show(as_json, tables[0].as_dict(), lambda: as_text(tables))
    if plot:
        save_chart(plot, cost_chart(tables, in_ms=True))
    return _end(stopped)


@click.command(cls=SectionedCommand)
@click.option("-o", "--output", type=FILE, required=True, help="File to write, such as chains.npz.")
@_prompts
@_positions
@_depth(default=12)
@settings_options(*PAIR, "chat.chat_template")
def trace(output: Path, **wanted: Any) -> int:
    """Record the draft's guesses at every position of greedy answers, for `replay`.

    After Ctrl-C, the texts recorded so far are saved. One that a context cannot hold is left out.
    """
    from dspark_gguf.measure.chains import save_chains

    require_writable(output)
    texts, stopped = _recorded(**wanted)
    save_chains(output, texts)
    positions = sum(text.positions for text in texts)
    made = f"{counted(len(texts), 'text')}, {counted(positions, 'position')}"
    click.echo(visible(f"{made}: {output}"))
    return _end(stopped)


@click.command(cls=SectionedCommand)
@_prompts
@click.option("--chains", type=FILE, help="Chains that `trace` recorded, instead of a model.")
@_positions
@_depth(default=8)
@click.option("--plot", type=FILE, help="Reliability diagram: FILE.svg.")
@settings_options(*PAIR, "chat.chat_template")
def calibrate(chains: Path | None, plot: Path | None, **wanted: Any) -> int:
    """Check how well the draft's confidence predicts acceptance, before and after scaling.

    The method is Sequential Temperature Scaling. What is recorded with a model also adds to what
    the scheduler knows about the pair.
    """
    from dspark_gguf.measure.chains import load_chains
    from dspark_gguf.measure.charts import bars, require_svg, save_chart
    from dspark_gguf.measure.reliability import Reliability

    if plot:
        require_svg(plot)
    texts, stopped = (load_chains(chains), False) if chains else _recorded(**wanted, learning=True)
    if stopped and len(texts) < 2:  # one is too few
        raise Cancelled
    found = Reliability.of(texts)
    click.echo(found.as_text())
    for name, points in found.curves().items():
        title = f"reliability of the first token, {name}: predicted, and the share that survived"
        click.echo(f"\n{title}")
        click.echo(bars({f"{x:.2f}": y for x, y in points}, most=1.0))
    if plot:
        save_chart(plot, found.chart())
    return _end(stopped)


def _end(stopped: bool) -> int:
    """The exit code; says so if Ctrl-C ended the work."""
    if stopped:
        say("interrupted: this is what was measured so far")
    return Cancelled.exit_code if stopped else 0


def _recorded(
    settings: Settings, verbose: bool, prompts: Path | None, learning: bool = False, **each: Any
) -> tuple[list[Chains], bool]:
    """Chains of each prompt, and whether Ctrl-C ended the work early."""
    from dspark_gguf.chat.progress import counting
    from dspark_gguf.measure.prompts import read_prompts
    from dspark_gguf.measure.reliability import require
    from dspark_gguf.measure.trace import learn, record_fitting
    from dspark_gguf.signals import interruptible

    wanted, left_out = read_prompts(prompts), list[str]()
    texts: list[Chains] = []
    with open_pair(settings, verbose) as pair, interruptible(pair.interrupt):
        if learning:  # before the work
            require(len(wanted), pair.draft_cache() is not None)
        try:
            with counting(len(wanted), title="texts") as show:
                for text in record_fitting(pair, wanted, left_out, show, **each):
                    texts.append(text)
        except Cancelled:
            if not texts:
                raise
        for line in left_out:
            say(f"left out: {line}")
        stopped = pair.interrupt.is_set()
        if learning and settings.speculation.mode == "auto":
            learn(pair, settings.speculation, texts)
    return texts, stopped


@click.command()
@click.option("--chains", type=FILE, required=True, help="Recorded chains, from `trace`.")
@click.option("--table", type=FILE, required=True, help="Costs, from `profile --json`.")
@click.option("--rule", default="optimal", show_default=True, metavar="NAME[:OPTION=VALUE,...]",
              help="fixed:max=3, threshold:p=0.5,max=8, prefix:max=8, optimal:max=12, lookup, "
              "cascade:steps=12.")  # fmt: skip
@click.option("--warm", type=FILE, help="Chains for the rule to learn from first.")
@click.option("--grid", is_flag=True, help="Compare with 37 static settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug
def replay(
    chains: Path, table: Path, rule: str, warm: Path | None, grid: bool, as_json: bool
) -> None:
    """Replay a stopping rule on recorded chains: exact, without a model or a clock."""
    from dspark_gguf.cost import load_table
    from dspark_gguf.measure.chains import load_chains
    from dspark_gguf.measure.replay import Grid, play

    costs, texts = load_table(table), load_chains(chains)
    result = play(rule, texts, costs, load_chains(warm) if warm else ())
    static = Grid.of(texts, costs) if grid else None
    values = result.as_dict(rule) | (static.as_dict() if static else {})
    show(as_json, values, lambda: _replay_text(rule, result, static))


def _replay_text(rule: str, result: Result, static: Grid | None) -> str:
    lines = [f"{'':14}{'tokens':>8}{'x plain':>9}" + ("   best static setting" if static else "")]
    for domain in (*result.domains, None):
        sums = result if domain is None else result.domains[domain]
        line = f"{domain or 'all':14}{sums.tokens:8}{sums.speedup:9.3f}"
        if static:
            name, speedup = static.best(domain)
            line += f"{speedup:8.3f}  {name}"
        lines.append(line)
    lines.append(
        f"{rule}: {counted(result.rounds, 'round')}, {counted(result.drafted, 'draft step')}, "
        f"{result.verified} verified, {result.accepted} accepted"
    )
    return "\n".join(lines)


@click.command(cls=SectionedCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*PAIR, "speculation.draft_max", "sampling.temperature", "chat.chat_template")
def doctor(as_json: bool, settings: Settings, verbose: bool) -> int:
    """Diagnose this machine, this build and a pair, in one screen for a bug report.

    It shows versions and devices, whether the models fit in memory and fit each other, what passes
    cost here, what speed to expect, and what to change (!: a problem, -: a suggestion). Paths are
    shortened and user names left out. Without -m it examines the demo pair. Exit codes: 0 no
    problems, 1 a problem, 3 models that do not fit each other.
    """
    from dspark_gguf.chat.progress import working
    from dspark_gguf.chat.wrapping import columns
    from dspark_gguf.doctor import examine

    asked = click.get_current_context().get_parameter_source("debug")
    shown = traceback.print_exception if asked is ParameterSource.COMMANDLINE else str
    with working() as now:
        report = examine(settings, say, verbose, shown, now)
    show(as_json, report.as_dict(), lambda: report.as_text(columns(sys.stdout)))
    return report.exit_code
