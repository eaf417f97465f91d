"""Plots as PNG or SVG, with matplotlib, which is an extra; and as text, without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dspark_gguf.errors import UsageError

#: x and y of each line, by its name.
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]

_FORMATS = (".png", ".svg")
_WIDTH = 48


def require_format(path: Path) -> None:
    """Check a plot's file name before the work begins.

    Raises:
        UsageError: neither PNG nor SVG.

    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError("a plot named FILE.png or FILE.svg", str(path), "change its ending")
    _matplotlib()


def save_plot(path: Path, lines: Lines, x: str, y: str, title: str, diagonal: bool = False) -> None:
    """Draw lines into a file.

    Args:
        path: PNG or SVG.
        lines: what to draw.
        x: label with its unit.
        y: the same.
        title: above the plot.
        diagonal: draw the line where both are equal.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.

    """
    figure = _matplotlib().Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="o", markersize=3, label=name)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(f"to write {path}", str(error.strerror), "check the path") from None


def bars(values: Mapping[str, float], most: float | None = None, mark: float | None = None) -> str:
    """A bar of text for each value, the longest for `most`; a line through them at `mark`."""
    most = most or max(values.values())
    width = max(map(len, values))
    lines = []
    for name, value in values.items():
        bar = "█" * round(_WIDTH * value / most)
        if mark is not None:
            place = round(_WIDTH * mark / most)
            bar = f"{bar:<{place + 1}}"
            bar = f"{bar[:place]}|{bar[place + 1 :]}"
        lines.append(f"{name:>{width}} {bar} {value:.2f}")
    return "\n".join(lines)


def _matplotlib() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise UsageError(
            "matplotlib for a plot file", "none installed", "pip install 'dspark-gguf[plots]'"
        ) from None
    return figure
