"""Line charts as SVG, for a page or a file of their own; tables and bars of text.

Every text in an image is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from dspark_gguf.errors import UsageError

#: Size of the drawing in its own units, and the margins of its axes: at the width of a phone a
#: unit is about a pixel.
_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 40
#: Height of a line of the key, which has two columns.
_KEY = 16
#: Columns of the longest bar of text.
_BAR = 48

#: Colours on a light ground, and what they are for; a page may set others for a dark one.
LIGHT = {
    "ink": "#1d2126", "quiet": "#545b64", "edge": "#d5d8dc",
    "c0": "#1f5fbf", "c1": "#b3480f", "c2": "#2f7d3b", "c3": "#8a3aa8",
}  # fmt: skip
STYLE = """
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--edge); stroke-width: 1; }
.line, .ideal { fill: none; stroke-width: 1.8; }
.ideal { stroke: var(--quiet); stroke-dasharray: 3 3; stroke-width: 1; }
.line0 { stroke: var(--c0); } .line1 { stroke: var(--c1); stroke-dasharray: 6 3; }
.line2 { stroke: var(--c2); stroke-dasharray: 2 2; }
.line3 { stroke: var(--c3); stroke-dasharray: 8 2 2 2; }
.dot0 { fill: var(--c0); } .dot1 { fill: var(--c1); } .dot2 { fill: var(--c2); }
.dot3 { fill: var(--c3); }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: points ``(x, y)``; at most four lines look different."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From the least to the most, with a mark at each of `ticks`."""

    name: str
    least: float
    most: float
    ticks: Sequence[float]


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], diagonal: bool = False) -> Markup:
    """An SVG image of `lines`, with a key; a screen reader says `title` instead."""
    parts = _axes(x, y)
    if diagonal:
        parts.append(_polyline([(x.least, y.least), (x.most, y.most)], x, y, "ideal"))
    dot = Markup('<circle class="dot{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>')
    for k, line in enumerate(lines):
        parts.append(_key(k, line.name))
        parts.append(_polyline(line.points, x, y, f"line line{k % 4}"))
        parts += [dot.format(k % 4, *_place(point, x, y)) for point in line.points]
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT + _KEY * -(-len(lines) // 2), title, Markup().join(parts)
    )


def require_svg(path: Path) -> None:
    """Check the name of a chart's file before the work begins.

    Raises:
        UsageError: it does not end in ``.svg``.

    """
    if path.suffix.lower() != ".svg":
        raise UsageError(f"cannot draw {path}: plots are SVG", "Name it FILE.svg.")


def save_chart(path: Path, image: Markup) -> None:
    """Write a chart of `chart` as a file of its own, on white.

    Raises:
        UsageError: the file cannot be written.

    """
    style = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], STYLE)
    inside = f'><style>{style}</style><rect width="100%" height="100%" fill="white"/>'
    whole = str(image).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    try:
        path.write_text(whole.replace(">", inside, 1), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "Check the path.") from None


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, all but the first column aligned right."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=1000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def bars(values: Mapping[str, float], most: float | None = None, mark: float | None = None) -> str:
    """A bar of text for each value, the longest for `most`; a line through them at `mark`."""
    most = most or max(values.values())
    width = max(map(len, values))
    lines = []
    for name, value in values.items():
        bar = "█" * round(_BAR * value / most)
        if mark is not None:
            place = round(_BAR * mark / most)
            bar = f"{bar:<{place + 1}}"
            bar = f"{bar[:place]}|{bar[place + 1 :]}"
        lines.append(f"{name:>{width}} {bar} {value:.2f}")
    return "\n".join(lines)


def up_to(name: str, most: float) -> Axis:
    """An axis from 0 with about four round marks that reaches `most`."""
    rough = max(most, 1e-9) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(unit for unit in (1.0, 2.0, 2.5, 5.0, 10.0) if unit * size >= rough)
    return Axis(name, 0.0, most, [step * k for k in range(int(most / step + 1e-9) + 1)])


def _key(k: int, name: str) -> Markup:
    across, down = _LEFT + (_WIDTH - _LEFT) // 2 * (k % 2), _HEIGHT + _KEY * (k // 2) + 4
    mark = Markup(
        '<line class="line line{}" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}">{}</text>'
    )
    return mark.format(k % 4, across, across + 20, down, down, across + 25, down + 4, name)


def _axes(x: Axis, y: Axis) -> list[Markup]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    across = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>')
    up = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
    )
    parts = [across.format(_place((tick, 0), x, y)[0], bottom + 15, tick) for tick in x.ticks]
    for tick in y.ticks:
        place = _place((0, tick), x, y)[1]
        parts.append(up.format(_LEFT, right, place, place, _LEFT - 5, place + 4, tick))
    below = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    beside = Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(below.format((_LEFT + right) / 2, _HEIGHT - 6, x.name))
    return [*parts, beside.format((_TOP + bottom) / 2, y.name)]


def _polyline(points: Sequence[tuple[float, float]], x: Axis, y: Axis, kind: str) -> Markup:
    places = " ".join("{:.1f},{:.1f}".format(*_place(point, x, y)) for point in points)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, places)


def _place(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    across = (point[0] - x.least) / ((x.most - x.least) or 1.0)
    up = (point[1] - y.least) / ((y.most - y.least) or 1.0)
    return (
        _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
        _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
    )
