"""A bench for a terminal: what is measured, tables, plots, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dspark_gguf.measure.bench.results import HEADS, Loss, Results, Row, shown
from dspark_gguf.measure.bench.ways import OPTIMAL, PLAIN, YOURS
from dspark_gguf.measure.charts import bars

#: Columns of the first table: names of domains, then one cell for each way, at least so wide.
_NAME, _CELL = 14, 12
#: Plain decoding that runs so many times faster in one turn than in another says that the machine
#: does other things: prompts alone change it far less.
_UNSTEADY = 1.5
_MIB = 1024**2


def header(ways: Mapping[str, str], turns: int, most: int) -> str:
    """What is compared, and what the figures mean.

    Args:
        ways: what each of them is, by name.
        turns: how many there will be.
        most: tokens of an answer.

    """
    width = max(map(len, ways))
    lines = [
        f"{turns} turn{'s' * (turns != 1)}. In a turn every way answers the same prompt with up to "
        f"{most} tokens,",
        "one after the other, each from an empty cache; the order changes from turn to turn. All",
        "are warmed up, and nothing is known at first but what passes cost here.",
        "",
        *(f"  {name:<{width}}  {about}" for name, about in ways.items()),
        "",
        "x plain: speed over plain decoding of the same prompt in the same turn, the prompt's own",
        "reading not counted; median over the turns, ± half of what lies between the extremes.",
        "Above 1 is faster than plain decoding, below 1 slower.",
    ]
    return "\n".join(lines)


def regime(temperature: float) -> str:
    """A temperature in words."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def as_text(results: Results, width: int = 100) -> str:
    """Tables, plots and verdicts of every temperature.

    Args:
        results: one turn or more.
        width: columns of the terminal.

    """
    blocks = []
    for temperature in results.temperatures:
        rows = results.rows(temperature)
        blocks += [
            f"== {regime(temperature)} ==",
            _ratios(rows, width),
            _costs(rows),
            _plot(rows),
            verdict(results, temperature),
        ]
    return "\n\n".join(blocks)


def memory(ours: int | None, all_: int | None) -> str:
    """One line about main memory.

    Args:
        ours: most bytes before any peer was loaded.
        all_: most bytes of the whole run.

    """
    if ours is None or all_ is None:
        return "peak memory: this system does not tell"
    line = f"peak memory: {ours / _MIB:.0f} MiB"
    if all_ > ours * 1.02:
        line += f" when all our ways were warm, {all_ / _MIB:.0f} MiB at the end"
    return line + " (this process; a GPU's own memory is not in it)"


def verdict(results: Results, temperature: float) -> str:
    """Where plain decoding wins, in words."""
    wins, domains = results.plain_wins(temperature), results.domains_at(temperature)
    if not set(results.ways) - results.peers - {PLAIN}:
        first = "no way of drafting was measured"
    elif len(wins) == len(domains):
        first = "plain decoding wins everywhere: no way of drafting is faster on any kind of text"
    elif wins:
        first = f"plain decoding wins on {', '.join(wins)}: no way of drafting is faster there"
    else:
        first = "on every kind of text some way of drafting is faster than plain decoding"
    lines = [f"{regime(temperature)}: {first}", *_unsteady(results, temperature)]
    for way in results.ways:
        slower = [loss for loss in results.losses(way) if loss.temperature == temperature]
        if way == PLAIN or way in results.peers or not slower:
            continue
        lines.append(f"  {way} is slower than plain decoding on {_slower(slower, len(domains))}")
    return "\n".join(lines)


def _slower(losses: Sequence[Loss], kinds: int) -> str:
    def named(loss: Loss) -> str:
        return f"{loss.domain} {loss.ratio.median:.2f}"

    if len(losses) == kinds > 2:
        ends = sorted(losses, key=lambda loss: loss.ratio.median)
        return f"every kind of text: from {named(ends[0])} to {named(ends[-1])}"
    return ", ".join(named(loss) + " (not in every turn)" * (not loss.sure) for loss in losses)


def _unsteady(results: Results, temperature: float) -> list[str]:
    speed = results.speed(PLAIN, temperature)
    if speed.high < _UNSTEADY * speed.low:
        return []
    return [
        f"  an unsteady machine: plain decoding alone ran at {speed.low:.1f} to {speed.high:.1f} "
        "tokens a second; close other programs, raise --repeats, trust no single figure"
    ]


def _ratios(rows: Sequence[Row], width: int) -> str:
    others = [row for row in rows if row.way != PLAIN]
    cell = max(_CELL, 2 + max((len(row.way) for row in others), default=0))
    fits = max(1, (width - _NAME) // cell)
    tables = []
    for start in range(0, len(others), fits):
        part = others[start : start + fits]
        lines = [f"{'x plain':<{_NAME}}" + "".join(f"{row.way:>{cell}}" for row in part)]
        for domain in rows[0].ratios:
            cells = (shown(row.ratios[domain], ".2f") for row in part)
            name = f"{domain[: _NAME - 1]:<{_NAME}}"
            lines.append(name + "".join(f"{figure:>{cell}}" for figure in cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _costs(rows: Sequence[Row]) -> str:
    width = max(len(row.way) for row in rows)
    lines = []
    for name, cells in [("", HEADS), *((row.way, row.cells()) for row in rows)]:
        speed, *figures, worst = cells
        line = f"{name:<{width}}{speed:>14}" + "".join(f"{cell:>12}" for cell in figures)
        lines.append(f"{line}   {worst}".rstrip())
    return "\n".join(lines)


def _plot(rows: Sequence[Row]) -> str:
    """Bars of the way that a user gets, with a mark where plain decoding is."""
    way = drawn([row.way for row in rows])
    ratios = next(row.ratios for row in rows if row.way == way)
    values = {domain: ratio.median for domain, ratio in ratios.items() if ratio is not None}
    if not values:
        return f"{way}: nothing to plot"
    most = max(1.2, *values.values())
    return f"{way}, x plain; | is plain decoding\n" + bars(values, most, mark=1.0)


def drawn(ways: Sequence[str]) -> str:
    """The way whose bars are drawn."""
    return next((way for way in (YOURS, OPTIMAL) if way in ways), ways[-1])
