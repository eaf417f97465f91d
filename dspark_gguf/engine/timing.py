"""A short profile: what passes of a pair take, before the first real round says it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from time import perf_counter

from dspark_gguf.cost import LearnedCosts
from dspark_gguf.engine.block import BlockContext
from dspark_gguf.engine.protocol import Cache

#: Rows in the order of their worth: if the time is up, the rest is filled in from neighbours.
_ROWS = (1, 2, 4, 3, 6, 9, 5, 17, 7, 8, 33, 13, 65, 11, 10, 12, 25, 49)
_SWEEPS = 3
_CONTEXT = 16
_READ = 64
#: Seconds that a look at one more row of a block takes, until the first rounds say it.
_SCORE = 5e-5


def quick_profile(
    target: Cache, draft: Cache | None, costs: LearnedCosts, budget: float, limit: int
) -> None:
    """Measure the models, for about `budget` seconds; empties their caches.

    Args:
        target: the target's cache.
        draft: the draft's; None: there is none.
        costs: learns what passes take.
        budget: seconds.
        limit: most draft tokens.

    """
    started = perf_counter()
    if isinstance(draft, BlockContext):
        costs.add_look(_SCORE)
        costs.add_first_look(block_seconds(target, draft, _CONTEXT), 1)
    elif draft is not None:
        looks, pairs, read = _looks(draft)
        for seconds in looks:
            costs.add_look(seconds)
        for seconds in pairs:
            costs.add_first_look(seconds, 2)
        costs.add_first_look(read, _READ)
    taken: dict[int, list[float]] = {}
    wanted = [rows for rows in _ROWS if rows <= min(limit + 1, target.max_rows)]
    for rows, seconds in passes(target, wanted * _SWEEPS, _CONTEXT):
        taken.setdefault(rows, []).append(seconds)
        if perf_counter() - started > budget and len(taken) > 2:
            break
    for rows, times in taken.items():
        # What disturbs a pass makes it slower. A figure that is too low is mended by the first
        # real rounds; one that is too high keeps such rounds from being tried.
        costs.add_pass(rows, min(times))
    costs.profiled = max(costs.profiled, limit)
    target.trim(0)
    if draft is not None:
        draft.trim(0)


def block_seconds(target: Cache, draft: BlockContext, depth: int, repeats: int = 8) -> float:
    """Median seconds of a block behind `depth` tokens, with the features of a round to read."""
    ids = tokens(target, depth + draft.most_drafts + 1)
    taken = []
    for _ in range(repeats + 1):
        target.restart(ids[:depth])
        draft.inject()
        target.decode(ids[depth:-1])
        started = perf_counter()
        draft.propose(ids[-1], draft.most_drafts)
        taken.append(perf_counter() - started)
    return median(taken[1:])  # the first one pays for memory that the others reuse


def passes(cache: Cache, wanted: Sequence[int], depth: int) -> Iterator[tuple[int, float]]:
    """Rows and seconds of one pass after the other, at a context of `depth` tokens."""
    ids = tokens(cache, depth + max(wanted))
    cache.restart(ids[:depth])
    cache.decode(ids[depth : depth + 1])  # the first pass pays for memory that the others reuse
    for rows in wanted:
        cache.restart(ids[:depth])
        started = perf_counter()
        cache.decode(ids[depth : depth + rows])
        yield rows, perf_counter() - started
    cache.restart(ids[:depth])


def _looks(cache: Cache) -> tuple[list[float], list[float], float]:
    """Seconds of single looks, of looks that read two tokens, and of one that reads many."""
    ids = tokens(cache, _READ + _CONTEXT)
    cache.restart(ids[:_CONTEXT])
    cache.advance(ids[_CONTEXT : _CONTEXT + 1], 1)

    def look(count: int) -> float:
        cache.restart(ids[:_CONTEXT])
        started = perf_counter()
        cache.advance(ids[_CONTEXT : _CONTEXT + count], 1)
        return perf_counter() - started

    looks, pairs = [look(1) for _ in range(8)], [look(2) for _ in range(4)]
    return [median(looks)] * 3, [median(pairs)] * 3, look(_READ)


def tokens(cache: Cache, count: int) -> list[int]:
    """Ids that are as good as any text for measuring; a mixture of experts wants them different."""
    return [(7 + 37 * k) % cache.n_tokens for k in range(count)]
