"""A bench as one HTML page that needs nothing else: no script, no font, no picture from afar."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dspark_gguf.chat.progress import tracked
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench import text
from dspark_gguf.measure.bench.results import HEADS, Figure, Results, shown
from dspark_gguf.measure.bench.ways import PLAIN, STATIC
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.charts import LIGHT, STYLE, Axis, Line, chart
from dspark_gguf.measure.profile import Table, cost_cells, cost_chart, profile
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.measure.reliability import Reliability
from dspark_gguf.measure.trace import record
from dspark_gguf.paths import replacing
from dspark_gguf.tally import Tally

_ROWS, _DEPTH, _TEXTS = 13, 4, 8
#: Reading a prompt, and the parts of a round.
_PARTS = ("prompt", "target", "draft", "controller")


@dataclass(frozen=True, slots=True)
class Rest:
    """What the page shows besides the turns.

    Attributes:
        costs: of passes, in a short and a longer context.
        reliability: of the draft's confidences; None without a draft model.

    """

    costs: Sequence[Table]
    reliability: Reliability | None


def measure_rest(pair: Pair, prompts: Sequence[Prompt], positions: int) -> Rest:
    """Profile the pair, and record what its draft guesses on the first prompts.

    Raises:
        Cancelled: the user asked to stop.

    """
    costs = profile(pair, (), _ROWS)
    texts: list[Chains] = []
    if pair.draft_cache() is not None:
        few = prompts[:_TEXTS]
        texts = [record(pair, prompt, positions, _DEPTH) for prompt in tracked(few, len(few))]
    return Rest(costs, Reliability.of(texts) if len(texts) > 1 else None)


def require_folder(folder: Path) -> None:
    """Make a folder for the page, before the work begins.

    Raises:
        UsageError: it cannot be made, or cannot be written.

    """
    fault = "it is not a folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = str(error.strerror)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"cannot write a report in {folder}: {fault}", "Name another --report.")


def write_report(folder: Path, results: Results, facts: dict[str, Any], rest: Rest) -> Path:
    """Write ``index.html`` into `folder`; returns its path."""
    path = folder / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(render(results, facts, rest), encoding="utf-8")
    return path


def render(results: Results, facts: dict[str, Any], rest: Rest) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "mib": _mib}
    confidences = rest.reliability
    return environment.get_template("report.html").render(
        facts=facts,
        heads=list(HEADS),
        parts=list(_PARTS),
        regimes=[_regime(results, temperature) for temperature in results.temperatures],
        style=Markup(STYLE.strip()),
        light=LIGHT,
        costs=rest.costs,
        cost_heads=[head for t in rest.costs for head in (f"ms at {t.depth}", "times one")],
        cost_cells=cost_cells(rest.costs),
        cost_chart=cost_chart(rest.costs),
        reliability_rows=_reliability_rows(confidences) if confidences else [],
        reliability_chart=confidences.chart() if confidences else None,
    )


def _regime(results: Results, temperature: float) -> dict[str, Any]:
    rows = {row.way: row for row in results.rows(temperature)}
    others = [row for way, row in rows.items() if way != PLAIN]
    domains = results.domains_at(temperature)
    drawn = dict.fromkeys((STATIC, text.drawn(results.ways)))
    ratios = [[domain, *(row.ratios[domain] for row in others)] for domain in domains]
    accepted = {way: shares for way, row in rows.items() if (shares := _accepted(row.tally))}
    longest = max(map(len, accepted.values()), default=0)
    times = [[row.way, *_parts(row.tally)] for row in rows.values() if row.tally.target_seconds]
    return {
        "name": text.regime(temperature),
        "verdict": text.verdict(results, temperature).split("\n"),
        "others": others,
        "domains": domains,
        "drawn": [rows[way] for way in drawn if way in rows and way != PLAIN],
        "most": max([1.25, *(one.high for row in others for one in row.ratios.values() if one)]),
        "ratios": ratios,
        "summary": [[way, *row.cells()] for way, row in rows.items()],
        "positions": [
            [way, *shares, *[None] * (longest - len(shares))] for way, shares in accepted.items()
        ],
        "position_chart": _position_chart(list(accepted.items())[:4]),
        "times": times,
        "time_cells": [[way, *(f"{share:.1%}" for share in shares)] for way, *shares in times],
    }


def _accepted(tally: Tally, most: int = 12, least: int = 5) -> list[float]:
    """The shares of the first positions, as far as they were tried often enough to tell."""
    accepted = [*tally.accepted_by_position, *[0] * len(tally.drafted_by_position)]
    pairs = zip(accepted, tally.drafted_by_position, strict=False)
    return [yes / tried for yes, tried in pairs if tried >= least][:most]


def _position_chart(accepted: Sequence[tuple[str, list[float]]]) -> Markup | None:
    if not accepted:
        return None
    lines = [Line(way, list(enumerate(shares, 1))) for way, shares in accepted]
    longest = max(2, *(len(line.points) for line in lines))
    x = Axis("position in the draft", 1, longest, range(1, longest + 1))
    y = Axis("accepted", 0, 1, (0, 0.25, 0.5, 0.75, 1))
    return chart("Share of draft tokens accepted, by position in the draft", x, y, lines)


def _parts(tally: Tally) -> list[float]:
    """The share of the time that each part takes."""
    model = (tally.prefill_seconds, tally.target_seconds, tally.draft_seconds)
    seconds = (*model, tally.controller_seconds)
    return [part / sum(seconds) for part in seconds]


def _reliability_rows(confidences: Reliability) -> list[list[str]]:
    return [
        [name, *(f"{share:.0%}" for share in point)]
        for name, points in confidences.curves().items()
        for point in zip(*points, strict=True)
    ]


def _cell(value: Figure | float | str | None) -> str:
    """Of a table: text as it is, a share in percent."""
    if isinstance(value, str):
        return value
    return shown(value, ".2f" if isinstance(value, Figure) else ".0%")


def _mib(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1024**2:.0f} MiB"
