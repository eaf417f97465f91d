"""Line charts as inline SVG; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

#: Size of the drawing in its own units, and the margins of its axes: at the width of a phone a
#: unit is about a pixel.
_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 10, 40


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: points ``(x, y)``; at most four of them have looks of their own."""

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
    """An SVG image of `lines`; `title` is read aloud in its place."""
    parts = [_axes(x, y)]
    if diagonal:
        parts.append(_polyline([(x.least, y.least), (x.most, y.most)], x, y, "ideal"))
    for k, line in enumerate(lines):
        parts.append(_polyline(line.points, x, y, f"line line{k % 4}"))
        parts += [
            Markup('<circle class="dot{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(
                k % 4, *_place(point, x, y)
            )
            for point in line.points
        ]
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, title, Markup().join(parts)
    )


def _axes(x: Axis, y: Axis) -> Markup:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in x.ticks:
        place, _ = _place((tick, y.least), x, y)
        mark = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>')
        parts.append(mark.format(place, bottom + 15, tick))
    for tick in y.ticks:
        _, place = _place((x.least, tick), x, y)
        mark = Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>'
        )
        parts.append(mark.format(_LEFT, right, place, place, _LEFT - 5, place + 4, tick))
    across = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    up = Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(across.format((_LEFT + right) / 2, _HEIGHT - 6, x.name))
    parts.append(up.format((_TOP + bottom) / 2, y.name))
    return Markup().join(parts)


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


def up_to(name: str, most: float, least: float = 0.0) -> Axis:
    """An axis with about four round marks that reaches `most`."""
    width = max(most - least, 1e-9)
    rough = width / 4
    size = 10.0 ** len(str(int(rough))) / 10 if rough >= 1 else 0.01
    step = next(
        (
            unit * scale
            for scale in (size, 10 * size, 100 * size)
            for unit in (1.0, 2.0, 2.5, 5.0)
            if unit * scale >= rough
        ),
        rough,
    )
    count = int(width / step + 1e-9)
    return Axis(name, least, most, [least + step * k for k in range(count + 1)])
