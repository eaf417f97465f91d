"""Measure what passes of a pair cost on this machine, in a short and a longer context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any

from markupsafe import Markup

from dspark_gguf.chat.progress import track, uninterrupted
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache
from dspark_gguf.engine.timing import median_guess_seconds, passes
from dspark_gguf.errors import Cancelled, ResourceError
from dspark_gguf.measure.charts import Axis, Line, bars, chart, up_to
from dspark_gguf.visible import text_table

#: Timed passes of each kind, of which the median counts.
_REPEATS = 5
#: Default depths in tokens; the second is at most half of the smaller context.
_SHALLOW, _DEEP = 16, 1024


@dataclass(frozen=True, slots=True)
class Table:
    """Costs at one context depth."""

    depth: int  # tokens in both caches
    target: Sequence[float]  # seconds of a pass of 1, 2, ... rows
    draft: float  # seconds of one draft step; 0 without a draft model
    once: bool = False  # whether one step drafts a whole block

    @property
    def ratios(self) -> list[float]:
        """Seconds over those of one row."""
        return [seconds / self.target[0] for seconds in self.target]

    def as_dict(self) -> dict[str, Any]:
        """The file that ``replay --table`` reads."""
        steps = range(1, len(self.target))
        return {
            "target_seconds": [round(seconds, 7) for seconds in self.target],
            "draft_seconds": [round((1 if self.once else k) * self.draft, 7) for k in steps],
        }


def profile(pair: Pair, depths: Sequence[int], rows: int) -> list[Table]:
    """Measure passes of up to so many rows; both caches are empty afterwards.

    `depths` are tokens in the caches; by default, a short and a long context. A ResourceError names
    a depth beyond the context. After an interrupt, the depths measured so far are returned, if any.
    """
    draft = pair.draft_cache()
    n_ctx = pair.target_cache.n_ctx if draft is None else min(pair.target_cache.n_ctx, draft.n_ctx)
    room = n_ctx - rows - 1
    if room < 1:
        raise ResourceError(
            f"a context of {n_ctx} tokens is too small for a pass of {rows} rows",
            "Use fewer --rows or a larger --ctx-size.",
        )
    depths = depths or sorted({min(_SHALLOW, room), min(_DEEP, n_ctx // 2, room)})
    if max(depths) > room:
        raise ResourceError(
            f"a --depth of {max(depths)} leaves no room for {rows} rows in a context of {n_ctx}",
            f"Use at most {room}.",
        )
    tables = []
    for depth in depths:
        try:
            tables.append(_table(pair, draft, depth, rows))
        except Cancelled:
            if not tables:
                raise
            break
    for cache in pair.caches.values():
        cache.trim(0)
    return tables


def _table(pair: Pair, draft: Cache | None, depth: int, rows: int) -> Table:
    def watch(work: list[int]) -> Iterator[int]:
        title = f"passes after {depth:,} tokens"
        return track(uninterrupted(work, pair.interrupt), len(work), title=title)

    def medians(cache: Cache, counts: Sequence[int]) -> list[float]:
        taken = passes(cache, counts, depth, _REPEATS, watch=watch)
        return [median(times) for times in taken.values()]

    target = pair.target_cache
    seconds, step, once = medians(target, range(1, rows + 1)), 0.0, False
    if isinstance(draft, Follower):
        _, step = median_guess_seconds(target, draft, depth)
        once = draft.kind == "block"
    elif draft is not None:
        [step] = medians(draft, [1])
    return Table(depth, seconds, step, once)


def as_text(tables: Sequence[Table]) -> str:
    """The table, the effect of depth, and a plot for the first depth."""
    rows = cost_cells(tables)
    if tables[0].draft:
        steps = [(f"{1e3 * t.draft:.2f}", f"{t.draft / t.target[0]:.2f}") for t in tables]
        rows.append(["draft step", *chain.from_iterable(steps)])
    heads = [head for table in tables for head in (f"at {table.depth}: ms", "over 1")]
    parts = [text_table(["rows", *heads], rows)]
    if len(tables) > 1:
        short, long = tables[0], tables[-1]
        figures = zip([*long.target, long.draft], [*short.target, short.draft], strict=True)
        ratios = [slow / fast for slow, fast in figures if fast]
        level = median(ratios)
        off = median(abs(ratio / level - 1.0) for ratio in ratios)
        parts.append(
            f"depth {long.depth} over {short.depth}: x{level:.2f}; apart from this "
            f"common factor single figures differ by {off:.1%} in the median"
        )
    plot = bars({str(k + 1): ratio for k, ratio in enumerate(tables[0].ratios)})
    return "\n".join([*parts, "", plot])


def cost_cells(tables: Sequence[Table]) -> list[list[str]]:
    """Rows of a table: the number of rows, then at each depth the time and its ratio to one row."""
    return [
        [str(k + 1)]
        + [cell for t in tables for cell in (f"{1e3 * t.target[k]:.2f}", f"{t.ratios[k]:.2f}")]
        for k in range(len(tables[0].target))
    ]


def cost_chart(tables: Sequence[Table], in_ms: bool = False) -> Markup:
    """The cost of a pass by its rows, as a multiple of one row or in milliseconds."""
    curves = [[1e3 * s for s in table.target] if in_ms else table.ratios for table in tables]
    lines = [
        Line(f"after {table.depth:,} tokens", list(enumerate(curve, 1)))
        for table, curve in zip(tables, curves, strict=True)
    ]
    rows = len(tables[0].target)
    x = Axis("rows of a pass", 1, rows, range(1, rows + 1, -(-rows // 8)))
    y = up_to("milliseconds" if in_ms else "times one row", max(map(max, curves)))
    return chart("What a pass costs by its rows", x, y, lines)
