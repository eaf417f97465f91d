"""Line charts as SVG, for a page or a file of their own, and bar charts as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import file_errors, replacing, require_writable

#: The ends of both axes in the drawing's own units, as in ``chart.svg``: at the width of a phone
#: a unit is about a pixel.
_ACROSS, _UP = (42, 330), (190, 10)
#: Columns of the longest bar of text.
_BAR = 48

#: All text from outside is escaped.
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
#: Marks of an axis of shares.
SHARES = (0, 0.25, 0.5, 0.75, 1)
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

    def place(self, value: float, ends: tuple[float, float]) -> str:
        """Where a value lies between these places of the least and the most."""
        share = (value - self.least) / ((self.most - self.least) or 1.0)
        return f"{ends[0] + share * (ends[1] - ends[0]):.1f}"


def up_to(name: str, most: float) -> Axis:
    """An axis from 0 with about four round marks that reaches `most`."""
    rough = max(most, 1e-9) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(unit for unit in (1.0, 2.0, 2.5, 5.0, 10.0) if unit * size >= rough)
    return Axis(name, 0.0, most, [step * k for k in range(int(most / step + 1e-9) + 1)])


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], diagonal: bool = False) -> Markup:
    """An SVG image of `lines` with a legend; a screen reader reads `title` instead."""
    image = TEMPLATES.get_template("chart.svg").render(
        title=title,
        x=x,
        y=y,
        across=[(x.place(tick, _ACROSS), f"{tick:g}") for tick in x.ticks],
        up=[(y.place(tick, _UP), f"{tick:g}") for tick in y.ticks],
        diagonal=diagonal,
        lines=[
            (line.name, [(x.place(a, _ACROSS), y.place(b, _UP)) for a, b in line.points])
            for line in lines
        ],
    )
    return Markup(image)


def require_svg(path: Path) -> None:
    """Check the name and the place of a chart's file before the work begins."""
    if path.suffix.lower() != ".svg":
        raise UsageError(f"cannot draw {path}: plots are SVG", "Name it FILE.svg.")
    require_writable(path)


def save_chart(path: Path, image: Markup) -> None:
    """Write an SVG from `chart` to a file of its own, on a white background."""
    style = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], STYLE)
    inside = f'><style>{style}</style><rect width="100%" height="100%" fill="white"/>'
    whole = str(image).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    with file_errors("write", path), replacing(path) as temporary:
        temporary.write_text(whole.replace(">", inside, 1), encoding="utf-8")


def bars(values: Mapping[str, float], most: float | None = None, mark: float | None = None) -> str:
    """A bar of text for each value, full length at `most`, and a line through them at `mark`."""
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
