"""A bench for a terminal: what is measured, tables, plots, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dspark_gguf.measure.bench.results import HEADS, Loss, Results, Row, shown
from dspark_gguf.measure.bench.ways import OPTIMAL, PLAIN, YOURS
from dspark_gguf.measure.charts import bars, text_table

#: Columns of the first table, with the gaps: names of domains, then at least so many for each way.
_NAME, _CELL = 14, 12
#: Plain decoding that runs so many times faster in one turn than in another shows that the machine
#: does other things: prompts alone change its speed far less.
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
        "are warmed up, and know nothing at first but what passes cost here.",
        "",
        *(f"  {name:<{width}}  {about}" for name, about in ways.items()),
        "",
        "x plain: speed over plain decoding of the same prompt in the same turn, without the time",
        "to read the prompt; median over the turns, ± half the distance between the extremes.",
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
            text_table(["", *HEADS], [[row.way, *row.cells()] for row in rows]),
            _plot(rows),
            verdict(results, temperature),
        ]
    return "\n\n".join(blocks)


def memory(ours: int | None, all_: int) -> str:
    """One line about main memory.

    Args:
        ours: most bytes before any peer was loaded; None: nothing was measured.
        all_: most bytes of the whole run.

    """
    if ours is None:
        return "peak memory: not available here"
    line = f"peak memory: {ours / _MIB:.0f} MiB"
    if all_ > ours * 1.02:
        line += f" when all ways of this package were warm, {all_ / _MIB:.0f} MiB at the end"
    return line + " (this process, without a GPU's own memory)"


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
    named = {loss: f"{loss.domain} {loss.ratio.median:.2f}" for loss in losses}
    if len(losses) == kinds > 2:
        least, *_, most = sorted(losses, key=lambda loss: loss.ratio.median)
        return f"every kind of text: from {named[least]} to {named[most]}"
    return ", ".join(named[loss] + " (not in every turn)" * (not loss.sure) for loss in losses)


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
    cell = max([_CELL, *(2 + len(row.way) for row in others)])
    fits = max(1, (width - _NAME) // cell)
    parts = [others[start : start + fits] for start in range(0, len(others), fits)]
    return "\n\n".join(
        text_table(
            ["x plain", *(row.way for row in part)],
            [
                [domain[: _NAME - 2], *(shown(row.ratios[domain], ".2f") for row in part)]
                for domain in rows[0].ratios
            ],
        )
        for part in parts
    )


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
