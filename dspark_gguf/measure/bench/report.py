"""A bench as a single HTML page: no scripts, and no fonts or images from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from markupsafe import Markup

from dspark_gguf.chat.progress import track
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.measure.bench import text
from dspark_gguf.measure.bench.plan import PLAIN, STATIC
from dspark_gguf.measure.bench.results import Figure, Regime, Results, shown
from dspark_gguf.measure.charts import LIGHT, SHARES, STYLE, TEMPLATES, Axis, Line, chart
from dspark_gguf.measure.profile import Table, cost_cells, cost_chart, profile
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.measure.reliability import Reliability
from dspark_gguf.measure.trace import has_chains, record
from dspark_gguf.paths import MIB, replacing
from dspark_gguf.speedup import measured
from dspark_gguf.tally import Tally
from dspark_gguf.visible import counted

_ROWS, _DEPTH, _TEXTS = 13, 4, 8
#: Positions in drafts that were tried less often are left out.
_TRIED = 5


class Extras(NamedTuple):
    """What the page shows besides the turns of the bench."""

    costs: Sequence[Table]  # of passes, in a short and a longer context; empty: not measured
    reliability: Reliability | None  # of the draft's confidences


def measure_extras(
    pair: Pair, prompts: Sequence[Prompt], positions: int, tell: Callable[[str], object]
) -> Extras:
    """Profile the pair, and record what its draft guesses on the first prompts.

    The page does without what cannot be measured, and `tell` is called with the reason.
    """
    costs: Sequence[Table] = ()
    reliability = None
    few = prompts[:_TEXTS]
    try:
        costs = profile(pair, (), _ROWS)
        cache = pair.draft_cache()
        if cache is not None and has_chains(cache) and len(few) > 1:
            texts = [record(pair, prompt, positions, _DEPTH) for prompt in track(few)]
            reliability = Reliability.of(texts)
    except DSparkError as error:
        tell(f"the report lacks what passes cost or what guesses are worth: {error.problem}")
    return Extras(costs, reliability)


def require_folder(folder: Path) -> None:
    """Make the page's folder before the work begins; a UsageError says why that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write a report in {folder}: {error.strerror}"
        raise UsageError(problem, "Name another --report.") from None


def write_report(folder: Path, results: Results, facts: dict[str, Any], extras: Extras) -> Path:
    """Write ``index.html`` into `folder`, and ``bench.json``; returns the path of the page."""
    path = folder / "index.html"
    for file, content in (
        (path, render(results, facts, extras)),
        (folder / "bench.json", json.dumps(facts, indent=1)),
    ):
        with replacing(file) as temporary:
            # "?" for the bytes of a name that is not text
            temporary.write_text(content, encoding="utf-8", errors="replace")
    return path


def render(results: Results, facts: dict[str, Any], extras: Extras) -> str:
    """The page."""
    TEMPLATES.filters |= {"cell": _cell, "counted": counted, "mib": _mib, "tone": _tone}
    curves = extras.reliability.curves() if extras.reliability else {}
    return TEMPLATES.get_template("bench/report.html").render(
        facts=facts,
        answer=_answer(results.regimes()),
        parts=["prompt", "target", "draft", "rest"],
        regimes=[_regime(regime) for regime in results.regimes()],
        style=Markup(STYLE.strip()),
        light=LIGHT,
        costs=extras.costs,
        cost_heads=[head for t in extras.costs for head in (f"ms at {t.depth}", "times one")],
        cost_cells=cost_cells(extras.costs) if extras.costs else None,
        cost_chart=cost_chart(extras.costs) if extras.costs else None,
        reliability_rows=[[name, *point] for name in curves for point in curves[name]],
        reliability_chart=extras.reliability.chart() if extras.reliability else None,
    )


def _answer(regimes: Sequence[Regime]) -> str:
    """One sentence: whether what a user gets is faster, by how much, and where."""
    found = [regime.speedup for regime in regimes if regime.speedup]
    if not found or not any(regime.drafting for regime in regimes):
        return "Nothing was compared with plain decoding."
    spread = max(regime.spread for regime in regimes)
    together = [each for regime in regimes for each in regime.drawn.comparisons]
    speedup = measured(together, spread)
    words = f"{speedup.words[:1].upper()}{speedup.words[1:]}"
    if speedup.doubt:
        return f"{words}: {speedup.doubt}."
    ratios = [(r.median, kind) for each in regimes for kind, r in each.drawn.ratios.items()]
    least, most = (f"{ratio:.2f}x ({kind})" for ratio, kind in (min(ratios), max(ratios)))
    medians = f"the medians are from {least} to {most}"
    return f"{words}: {speedup.typical:.2f}x plain decoding over all answers; {medians}."


def _tone(ratio: Figure, spread: float) -> str:
    """The colour of a ratio: faster, slower, or too close to call."""
    if not ratio.differs(spread):
        return "same"
    return "fast" if ratio.median > 1.0 else "slow"


def _regime(regime: Regime) -> dict[str, Any]:
    rows, domains = regime.rows, regime.domains
    others = [row for row in rows.values() if row.method != PLAIN]
    drawn = dict.fromkeys((regime.drawn.method, STATIC))
    shares = {method: row.tally.shares_by_position(_TRIED)[:12] for method, row in rows.items()}
    accepted = {method: found for method, found in shares.items() if found}
    longest = max(map(len, accepted.values()), default=0)
    return {
        "name": str(regime),
        "headline": text.headline(regime),
        "warning": text.unsteadiness(regime),
        "details": text.details(regime, [regime.drawn]),
        "spread": regime.spread,
        "others": [row.method for row in others],
        "domains": domains,
        "drawn": [row for method in drawn for row in others if row.method == method],
        "most": max([1.25, *(ratio.high for row in others for ratio in row.ratios.values())]),
        "ratios": [[domain, *(row.ratios.get(domain) for row in others)] for domain in domains],
        "heads": list(rows[PLAIN].cells()),
        "summary": [[method, *row.cells().values()] for method, row in rows.items()],
        "positions": [
            [method, *shares, *[None] * (longest - len(shares))]
            for method, shares in accepted.items()
        ],
        "position_chart": _position_chart(accepted),
        "times": [
            [method, *_parts(row.tally)] for method, row in rows.items() if row.tally.target_seconds
        ],
    }


def _position_chart(accepted: Mapping[str, list[float]]) -> Markup | None:
    if not accepted:
        return None
    first = islice(accepted.items(), 4)
    lines = [Line(method, list(enumerate(shares, 1))) for method, shares in first]
    longest = max(2, *(len(line.points) for line in lines))
    x = Axis("position in the draft", 1, longest, range(1, longest + 1))
    y = Axis("accepted", 0, 1, SHARES)
    return chart("Share of draft tokens accepted, by position in the draft", x, y, lines)


def _parts(tally: Tally) -> list[float]:
    """The shares of the time: reading prompts, and the parts of rounds."""
    model = (tally.prefill_seconds, tally.target_seconds, tally.draft_seconds)
    seconds = (*model, tally.controller_seconds)
    return [part / sum(seconds) for part in seconds]


def _cell(value: Figure | float | str | None, form: str = ".0%") -> str:
    """The text of a table cell; shares are formatted with `form`."""
    if isinstance(value, str):
        return value
    return shown(value, ".2f" if isinstance(value, Figure) else form)


def _mib(size: int | None) -> str:
    return "not known" if size is None else f"{size / MIB:.0f} MiB"
