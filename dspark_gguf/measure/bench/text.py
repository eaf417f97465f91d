"""A bench on a terminal: what is measured, tables, plots, and where plain decoding wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from dspark_gguf.chat.wrapping import WIDTH
from dspark_gguf.measure.bench.plan import DEFAULT, PLAIN
from dspark_gguf.measure.bench.results import Figure, Regime, Results, Row, shown
from dspark_gguf.measure.charts import bars
from dspark_gguf.paths import MIB
from dspark_gguf.visible import counted, text_table

#: Columns of the first table, with the gaps: names of domains, then at least so many for each
#: method.
_NAME, _CELL = 14, 12
#: If plain decoding varies by more than this factor between turns, the machine does other things:
#: prompts alone change its speed far less.
_UNSTEADY = 1.5


def header(methods: Mapping[str, str], turns: int, most: int, width: int = WIDTH) -> str:
    """What is compared, each with what it does, and what the figures mean."""
    longest = max(map(len, methods))
    indent = " " * (longest + 4)
    lines = [
        f"{counted(turns, 'turn')}. In a turn every method answers the same prompt, up to "
        f"{most} tokens, one after the other, each from an empty cache; the order changes from "
        "turn to turn. All are warmed up, and know nothing at first but what passes cost here.",
        "",
        *(
            fill(f"  {name:<{longest}}  {about}", width, subsequent_indent=indent)
            for name, about in methods.items()
        ),
        "",
        "x plain: speed over plain decoding of the same prompt in the same turn, without the time "
        "to read the prompt; median over the turns, ± half the distance between the extremes. "
        "Above 1 is faster than plain decoding, below 1 slower.",
    ]
    return "\n".join(fill(line, width) if line[:1].strip() else line for line in lines)


def as_text(results: Results, width: int = WIDTH) -> str:
    """Tables, plots and verdicts of every temperature, in `width` columns."""
    blocks = []
    for regime in results.regimes():
        rows = [{"": row.method} | row.cells() for row in regime.rows.values()]
        blocks += [
            f"== {regime} ==",
            _ratios(regime, width),
            text_table([*rows[0]], [[*row.values()] for row in rows]),
            _plot(regime),
            "\n".join(fill(line, width, subsequent_indent="  ") for line in verdict(regime)),
        ]
    return "\n\n".join(blocks)


def memory(ours: int, all: int, width: int = WIDTH) -> str:
    """One line about main memory: most bytes before any peer was loaded, and of the whole run."""
    line = f"peak memory: {ours / MIB:.0f} MiB"
    if all > ours * 1.02:
        line += f" when all methods of this package were warm, {all / MIB:.0f} MiB at the end"
    return fill(line + " (this process, without a GPU's own memory)", width)


def verdict(regime: Regime) -> list[str]:
    """Lines that say whether it is faster and where, and claim no more than was measured."""
    warning = unsteadiness(regime)
    return [
        *[warning] * bool(warning),
        f"{regime}: {headline(regime)}",
        *details(regime, regime.drafting),
    ]


def details(regime: Regime, rows: Sequence[Row]) -> list[str]:
    """On what kinds of text these methods are faster or slower than plain decoding."""
    lines = []
    for row in rows:
        differs = {
            domain: ratio for domain, ratio in row.ratios.items() if ratio.differs(regime.spread)
        }
        for word, sign in (("faster", 1), ("slower", -1)):
            found = {d: r for d, r in differs.items() if sign * (r.median - 1.0) > 0.0}
            if found:
                where = _where(found, len(regime.domains))
                lines.append(f"  {name_of(row.method)} is {word} than plain decoding on {where}")
    return lines


def headline(regime: Regime) -> str:
    """Whether it is faster here: one sentence about what a user gets."""
    if not regime.drafting or regime.speedup is None:
        return "no method of drafting was measured"
    verb = "has" if regime.speedup.doubt else "is"
    return f"{name_of(regime.drawn.method)} {verb} {regime.speedup}"


def unsteadiness(regime: Regime) -> str:
    """A warning, where plain decoding's own speed changed too much to trust single figures."""
    if regime.spread < _UNSTEADY:
        return ""
    speed = regime.rows[PLAIN].speed
    return (
        f"an unsteady machine: plain decoding alone ran at {speed.low:.1f} to {speed.high:.1f} "
        "tokens a second; close other programs or raise --repeats, and trust no single figure"
    )


def name_of(method: str) -> str:
    """The name that users know: what runs without options is the default."""
    return "the default" if method == DEFAULT else method


def _where(found: Mapping[str, Figure], kinds: int) -> str:
    named = {domain: f"{domain} {ratio.median:.2f}x" for domain, ratio in found.items()}
    if len(found) == kinds > 2:
        least, *_, most = sorted(found, key=lambda domain: found[domain].median)
        return f"every kind of text: from {named[least]} to {named[most]}"
    return ", ".join(
        named[domain] + " (not in every turn)" * (ratio.low <= 1.0 <= ratio.high)
        for domain, ratio in found.items()
    )


def _ratios(regime: Regime, width: int) -> str:
    others = [row for row in regime.rows.values() if row.method != PLAIN]
    cell = max([_CELL, *(2 + len(row.method) for row in others)])
    fits = max(1, (width - _NAME) // cell)
    parts = [others[start : start + fits] for start in range(0, len(others), fits)]
    return "\n\n".join(
        text_table(
            ["x plain", *(row.method for row in part)],
            [
                [domain[: _NAME - 2], *(shown(row.ratios.get(domain), ".2f") for row in part)]
                for domain in regime.domains
            ],
        )
        for part in parts
    )


def _plot(regime: Regime) -> str:
    """Bars of the method that a user gets, with a mark where plain decoding is."""
    row = regime.drawn
    values = {domain: ratio.median for domain, ratio in row.ratios.items()}
    if not values:
        return f"{name_of(row.method)}: nothing to plot"
    most = max(1.2, *values.values())
    return f"{name_of(row.method)}, x plain; | is plain decoding\n" + bars(values, most, mark=1.0)
