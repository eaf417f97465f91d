"""A bench as one HTML page that needs nothing else: no script, no font, no picture from afar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dspark_gguf.chat.progress import tracked
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench import text
from dspark_gguf.measure.bench.charts import Axis, Line, chart, up_to
from dspark_gguf.measure.bench.results import Figure, Results
from dspark_gguf.measure.bench.ways import PLAIN, STATIC
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.profile import Table, profile
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.measure.reliability import Reliability
from dspark_gguf.measure.trace import record
from dspark_gguf.paths import replacing
from dspark_gguf.records import Tally

_ROWS, _DEPTH, _TEXTS = 13, 4, 8
#: Reading a prompt, and the parts of a round.
_PARTS = ("prompt", "target", "draft", "controller")


@dataclass(frozen=True, slots=True)
class Rest:
    """What the page shows besides the turns.

    Attributes:
        costs: what passes take, in a short and a longer context.
        reliability: whether the draft's confidences are true; None without a draft model.

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
    got = "one that cannot be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = str(error.strerror)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"a folder for the report, {folder}", got, "name another --report")


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
    environment.filters |= {"ratio": _ratio, "percent": _percent, "mib": _mib}
    return environment.get_template("report.html").render(
        facts=facts,
        results=results,
        regimes=[_regime(results, temperature) for temperature in results.temperatures],
        costs=rest.costs,
        cost_chart=_cost_chart(rest.costs),
        reliability=rest.reliability,
        reliability_rows=list(_reliability_rows(rest.reliability)),
        reliability_chart=_reliability_chart(rest.reliability),
    )


def _regime(results: Results, temperature: float) -> dict[str, Any]:
    others = [way for way in results.ways if way != PLAIN]
    shown = text.shown(results.ways)
    drawn = list(dict.fromkeys(way for way in (STATIC, shown) if way in others))
    ratios = {
        domain: {way: results.ratio(way, temperature, domain) for way in others}
        for domain in results.domains_at(temperature)
    }
    found = [ratio.high for row in ratios.values() for ratio in row.values() if ratio]
    return {
        "name": text.regime(temperature),
        "temperature": temperature,
        "verdict": text.verdict(results, temperature).split("\n"),
        "others": others,
        "shown": shown,
        "drawn": drawn,
        "ratios": ratios,
        "most": max([1.25, *found]),
        "rows": [_row(results, way, temperature) for way in results.ways],
        "positions": _positions(results, temperature),
        "position_chart": _position_chart(results, temperature),
        "parts": list(_parts(results, temperature)),
    }


def _row(results: Results, way: str, temperature: float) -> dict[str, Any]:
    tally = results.tally(way, temperature)
    return {
        "way": way,
        "speed": results.speed(way, temperature),
        "tokens_per_round": tally.tokens_per_round or None,
        "accepted": tally.accepted_share if tally.drafted else None,
        "first_token": results.first_token(way, temperature).median,
    }


def _positions(results: Results, temperature: float) -> list[tuple[str, list[float]]]:
    """Of each way that drafts, the share accepted at each place of a draft."""
    found = []
    for way in results.ways:
        shares = _shares(results.tally(way, temperature))
        if shares:
            found.append((way, shares))
    return found


def _shares(tally: Tally, most: int = 12, least: int = 5) -> list[float]:
    """Of the first places, as far as they were tried often enough to tell."""
    accepted = [*tally.accepted_by_position, *[0] * len(tally.drafted_by_position)]
    pairs = zip(accepted, tally.drafted_by_position, strict=False)
    return [yes / tried for yes, tried in pairs if tried >= least][:most]


def _position_chart(results: Results, temperature: float) -> Markup | None:
    lines = [
        Line(way, [(k + 1, share) for k, share in enumerate(shares)])
        for way, shares in _positions(results, temperature)[:4]
    ]
    longest = max((len(line.points) for line in lines), default=0)
    if not longest:
        return None
    x = Axis("place in the draft", 1, max(longest, 2), range(1, max(longest, 2) + 1))
    y = Axis("accepted", 0, 1, (0, 0.25, 0.5, 0.75, 1))
    return chart("Share of drafts accepted, by place in the draft", x, y, lines)


def _parts(results: Results, temperature: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each way of ours, the share of the time that each part takes."""
    for way in results.ways:
        tally = results.tally(way, temperature)
        if tally.target_seconds:
            seconds = (
                tally.prefill_seconds, tally.target_seconds, tally.draft_seconds,
                tally.controller_seconds,
            )  # fmt: skip
            total = sum(seconds)
            yield way, {name: part / total for name, part in zip(_PARTS, seconds, strict=True)}


def _cost_chart(costs: Sequence[Table]) -> Markup:
    lines = [
        Line(f"{table.depth} tokens of context",
             [(k + 1, ratio) for k, ratio in enumerate(table.ratios)])
        for table in costs
    ]  # fmt: skip
    rows = len(costs[0].target)
    most = max(ratio for table in costs for ratio in table.ratios)
    x = Axis("rows of a pass", 1, rows, range(1, rows + 1, 2))
    return chart("Cost of a pass by its rows", x, up_to("times one row", most, 0.0), lines)


def _reliability_rows(reliability: Reliability | None) -> Iterator[tuple[str, float, float]]:
    if reliability is not None:
        for name, (told, seen) in reliability.curves().items():
            for one, other in zip(told, seen, strict=True):
                yield name, one, other


def _reliability_chart(reliability: Reliability | None) -> Markup | None:
    if reliability is None:
        return None
    lines = [
        Line(name, list(zip(told, seen, strict=True)))
        for name, (told, seen) in reliability.curves().items()
    ]
    ticks = (0, 0.25, 0.5, 0.75, 1)
    told, seen = Axis("told", 0, 1, ticks), Axis("survived", 0, 1, ticks)
    return chart("Told confidence and the share that survived", told, seen, lines, diagonal=True)


def _ratio(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    half = (figure.high - figure.low) / 2
    return f"{figure.median:.2f}" + (f" ±{half:.2f}" if half else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _mib(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1024**2:.0f} MiB"
