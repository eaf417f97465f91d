"""How passes are timed, and a short profile of a pair, before the first real round says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from statistics import median
from time import perf_counter
from typing import TypeVar

from dspark_gguf.config import Speculation
from dspark_gguf.cost import LearnedCosts
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.learned import Learned

#: Rows in the order of their worth: if the time is up, the rest is filled in from neighbours.
_ROWS = (1, 2, 4, 3, 6, 9, 5, 17, 7, 8, 33, 13, 65, 11, 10, 12, 25, 49)
_SWEEPS = 3
_CONTEXT = 16
_READ = 64
#: Seconds that a look at one more row of a block takes, until the first rounds say it.
_SCORE = 5e-5

Name = TypeVar("Name")


def interleaved(
    work: Mapping[Name, Callable[[], float]], repeats: int, budget: float = inf, least: int = 0
) -> dict[Name, list[float]]:
    """Seconds of each work, taking turns, so that a busy moment of the machine falls on all.

    Args:
        work: does it once, and returns the seconds that count.
        repeats: turns.
        budget: seconds, after which no more begins; the last turn may lack some then.
        least: how many are done even so, of all together.

    """
    taken: dict[Name, list[float]] = {name: [] for name in work}
    started = perf_counter()
    for k, name in enumerate([*work] * repeats):
        if k >= least and perf_counter() - started > budget:
            break
        taken[name].append(work[name]())
    return taken


def pass_seconds(cache: Cache, ids: Sequence[int], depth: int, count: int, rows: int = 0) -> float:
    """Of one pass over `count` tokens behind the first `depth` of `ids`; `rows`: not of all."""
    prefill(cache, ids[:depth])
    started = perf_counter()
    cache.decode(ids[depth : depth + count], rows or count)
    return perf_counter() - started


def measured(
    learned: Learned,
    target: SequenceCache,
    draft: SequenceCache | None,
    speculation: Speculation,
    budget: float,
    say: Callable[[str], object] = str,
) -> Learned:
    """`learned`, with the costs of these models measured first where they are not known.

    Args:
        learned: what is known.
        target: the target's cache; empty after measuring.
        draft: the draft's; None: there is none.
        speculation: how much may be drafted.
        budget: seconds that measuring takes, about.
        say: called with a line when it has to be measured.

    """
    costs = learned.costs
    costs.replays = target.rollback == "replay"
    limit = min(speculation.most_copies, target.max_rows - 1)
    if not costs.covers(limit, looks=draft is not None):
        who = "the model costs" if draft is None else "both models cost"
        say(f"measuring what {who} on this machine (once, about {budget:.0f} s)")
        quick_profile(target, draft, costs, budget, limit)
    return learned


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
    if isinstance(draft, BlockDraftCache):
        costs.add_look(_SCORE)
        before = min(_CONTEXT, target.n_ctx - draft.most_drafts)
        if before >= 0 and draft.room >= 0:
            costs.add_first_look(block_seconds(target, draft, before), 1)
    elif draft is not None:
        for count, seconds in _looks(draft):
            if count == 1:
                costs.add_look(seconds)
            else:
                costs.add_first_look(seconds, count)
    depth = _depth(target)
    most = min(limit + 1, target.max_rows, target.n_ctx - depth)
    wanted = [rows for rows in _ROWS if rows <= most]
    left = budget - (perf_counter() - started)
    for rows, times in passes(target, wanted, depth, _SWEEPS, left, least=3).items():
        # What disturbs a pass makes it slower. A figure that is too low is mended by the first
        # real rounds; one that is too high keeps such rounds from being tried.
        if times:
            costs.add_pass(rows, min(times))
    costs.profiled = max(costs.profiled, limit)
    target.trim(0)
    if draft is not None:
        draft.trim(0)


def block_seconds(target: Cache, draft: BlockDraftCache, depth: int, repeats: int = 8) -> float:
    """Median seconds of a block behind `depth` tokens, with the features of a round to read."""
    ids = tokens(target, depth + draft.most_drafts + 1)
    taken = []
    for _ in range(repeats + 1):
        prefill(target, ids[:depth])
        draft.flush()
        target.decode(ids[depth:-1], 1)
        started = perf_counter()
        draft.propose(ids[-1], draft.most_drafts)
        taken.append(perf_counter() - started)
    return median(taken[1:])  # the first one pays for memory that the others reuse


def passes(
    cache: Cache,
    wanted: Sequence[int],
    depth: int,
    repeats: int,
    budget: float = inf,
    least: int = 0,
) -> dict[int, list[float]]:
    """Seconds of passes over so many rows each, behind `depth` tokens, `interleaved`."""
    ids = tokens(cache, depth + max(wanted))
    pass_seconds(cache, ids, depth, 1)  # the first pass pays for memory that the others reuse
    work = {rows: partial(pass_seconds, cache, ids, depth, rows) for rows in wanted}
    taken = interleaved(work, repeats, budget, least)
    prefill(cache, ids[:depth])
    return taken


def _depth(cache: Cache) -> int:
    """Tokens of context to measure behind: half of a small one."""
    return min(_CONTEXT, cache.n_ctx // 2)


def _looks(cache: Cache) -> list[tuple[int, float]]:
    """Tokens read and seconds of looks at one, at two and at many, as far as there is room."""
    depth = _depth(cache)
    room = cache.n_ctx - depth
    ids = tokens(cache, depth + min(_READ, room))
    look = partial(pass_seconds, cache, ids, depth, rows=1)
    look(1)
    found = [(1, median(look(1) for _ in range(8)))] * 3
    if room > 1:
        found += [(2, median(look(2) for _ in range(4)))] * 3
    return found + ([(len(ids) - depth, look(_READ))] if room > 2 else [])


def tokens(cache: Cache, count: int) -> list[int]:
    """Ids that are as good as any text for measuring; a mixture of experts wants them different."""
    return [(7 + 37 * k) % cache.n_vocab for k in range(count)]
