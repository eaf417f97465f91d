"""Time passes, and make a short profile of a pair for use until the first real rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.engine.states import StateCache
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned_costs import LearnedCosts

#: Rows to time, the most useful first; the rest is interpolated. Both ends and the usual draft
#: length matter most; without 9 rows, the cost of long drafts is overestimated.
_ROWS = (1, 2, 9, 4, 3, 6, 5, 17, 7, 8, 33, 13, 65, 11, 10, 12, 25, 49)
_SWEEPS = 3
#: The first so many are timed twice before any other: two repeats that agree are worth more than
#: another number of rows.
_FIRST = 6
_CONTEXT = 16
#: Tokens of the timed prefill.
READ = 64
#: Repeats within this factor agree. On an idle machine nine of ten figures do.
_AGREES, _MOSTLY = 1.1, 0.8
#: States that a prediction head usually reads at its first guess.
_USUAL = 2
#: Number of guesses for a median.
_REPEATS = 5
#: Passes that are timed even beyond the time budget.
_LEAST = 3
#: In passes longer than so many seconds, the cost of building a new graph is negligible.
LONG = 0.05
#: Seconds for one more row of a block, until the first rounds measure it.
_SCORE = 5e-5

Name = TypeVar("Name")
#: Iterates over work, showing progress.
Watch: TypeAlias = Callable[[list[Any]], Iterable[Any]]


def interleave(
    work: Mapping[Name, Callable[[], float]],
    repeats: int,
    budget: float = inf,
    least: int = 0,
    watch: Watch = iter,
) -> dict[Name, list[float]]:
    """Run each work `repeats` times in turn, so that a busy moment affects all; returns seconds.

    `work` does it once and returns the seconds that count. After `budget` seconds nothing more is
    started once `least` were done in all. `watch` may show the progress.
    """
    taken: dict[Name, list[float]] = {name: [] for name in work}
    started = perf_counter()
    for k, name in enumerate(watch([*work] * repeats)):
        if k >= least and perf_counter() - started > budget:
            break
        taken[name].append(work[name]())
    return taken


def pass_seconds(cache: Cache, ids: Sequence[int], depth: int, count: int, rows: int = 0) -> float:
    """Seconds of a pass over `count` tokens after `depth` others; 0 `rows`: logits for all."""
    prefill(cache, ids[:depth])
    started = perf_counter()
    cache.decode(ids[depth : depth + count], rows or count)
    return perf_counter() - started


def quick_profile(
    target: Cache,
    draft: Cache | None,
    costs: LearnedCosts,
    budget: float,
    limit: int,
    show: Callable[[float], object] = lambda left: None,
) -> None:
    """Measure for about `budget` seconds, with at most `limit` draft tokens; empties the caches.

    `show` is called with the seconds left.
    """
    show(budget)
    started = perf_counter()
    if isinstance(draft, BlockDraftCache):
        _measure_blocks(target, draft, costs)
    elif isinstance(draft, StateCache):
        _measure_chain(target, draft, costs)
    elif draft is not None:
        _measure_draft_steps(draft, costs, budget / 2)
    depth = min(_CONTEXT, target.n_ctx // 2)
    most = min(limit + 1, target.max_rows, target.n_ctx - depth)
    wanted = [rows for rows in _ROWS if rows <= most]
    left = budget - (perf_counter() - started)

    def watch(work: list[int]) -> Iterator[int]:
        for k, rows in enumerate(work):
            begun = perf_counter()
            yield rows
            if not k:
                show(max(left, (_LEAST - 1) * (perf_counter() - begun)))

    taken = passes(target, wanted[:_FIRST], depth, 2, left, _LEAST, watch)
    is_short = most > 1 and min(taken[1], default=inf) <= LONG
    switch = switch_seconds(target, depth) if is_short else 0.0
    if (left := budget - (perf_counter() - started)) > 0.0:
        for rows, times in passes(target, wanted, depth, _SWEEPS, left).items():
            taken[rows] = [*taken.get(rows, []), *times]
    # The minimum, because other programs only make passes slower. Real rounds soon correct a figure
    # that is too low; one that is too high prevents them.
    least = {rows: min(times) for rows, times in taken.items() if times}
    costs.add_profile(least, agreeing(taken), switch)
    costs.profiled = max(costs.profiled, limit)
    target.trim(0)
    if draft is not None:
        draft.trim(0)


def agreeing(taken: Mapping[Name, Sequence[float]]) -> set[Name]:
    """Names whose two shortest repeats agree, if most do: otherwise the machine was busy."""
    shortest = {name: sorted(times)[:2] for name, times in taken.items() if len(times) > 1}
    found = {name for name, (one, two) in shortest.items() if two <= _AGREES * one}
    return found if len(found) >= _MOSTLY * len(shortest) else set()


def _measure_blocks(target: Cache, draft: BlockDraftCache, costs: LearnedCosts) -> None:
    """Time a block of one guess, a whole block, and reading many features."""
    most = draft.max_drafts
    before = min(_CONTEXT, target.n_ctx - most)
    if before < 0 or draft.room < 0:
        costs.add_draft_step(_SCORE)  # nothing can be drafted there
        return
    narrow, whole = median_guess_seconds(target, draft, before)
    costs.add_first_draft_step(narrow, 1)
    costs.add_draft_step(max((whole - narrow) / max(most - 1, 1), _SCORE))
    count = min(READ, draft.room, target.n_ctx)
    if count > _CONTEXT:
        target.trim(0)
        prefill(target, tokens(target, count))
        started = perf_counter()
        draft.flush()
        seconds = perf_counter() - started
        costs.add_block(most, seconds + float(costs.draft_seconds[most - 1]), count)


def median_guess_seconds(
    target: Cache, draft: Follower, depth: int, waiting: int = 0
) -> tuple[float, float]:
    """Medians of `guess_seconds` after `depth` tokens."""
    ids, taken = tokens(target, depth), []
    for _ in range(_REPEATS + 1):
        prefill(target, ids)
        taken.append(guess_seconds(target, draft, waiting))
    del taken[0]  # which also allocates memory
    return median(first for first, _ in taken), median(step for _, step in taken)


def guess_seconds(target: Cache, draft: Follower, waiting: int = 0) -> tuple[float, float]:
    """Seconds of the first guess and of the next one, after the tokens in the target's cache.

    The first guess reads the states of `waiting` more tokens, by default as many as after a round;
    they are rolled back. For a block draft: seconds of a block of one guess, and of a whole block.
    Raises `Cancelled` on an interrupt.
    """
    length, waiting = target.length, waiting or waits(draft)
    ids = tokens(target, waiting + 1)
    try:
        draft.flush()
        target.decode(ids[:-1], 1)
        if draft.context.interrupt.is_set():
            raise Cancelled
        started = perf_counter()
        after = [int(draft.decode(draft.opening(ids[-1]), 1)[0].argmax())]
        first = perf_counter()
        if draft.context.interrupt.is_set():
            raise Cancelled
        if not isinstance(draft, StateCache):
            after = draft.opening(ids[-1], draft.max_drafts)
        if draft.max_drafts > 1:
            draft.decode(after, 1)
        return first - started, perf_counter() - first
    finally:
        target.trim(length)


def waits(draft: Follower) -> int:
    """Target tokens that a draft usually has to read after a round."""
    return _USUAL if isinstance(draft, StateCache) else draft.max_drafts


def _measure_chain(target: Cache, draft: StateCache, costs: LearnedCosts) -> None:
    """Time first guesses that read two and many tokens, and a further guess."""
    room = min(target.n_ctx, draft.n_ctx) - 2
    if room < _USUAL:
        costs.add_draft_step(_SCORE)  # nothing can be drafted there
        return
    first, step = median_guess_seconds(target, draft, min(_CONTEXT, room) - _USUAL)
    costs.add_draft_step(step if draft.max_drafts > 1 else first)
    costs.add_first_draft_step(first, 1)
    count = min(READ, room)
    costs.add_first_draft_step(median_guess_seconds(target, draft, 0, count)[0], count)


def passes(
    cache: Cache,
    wanted: Sequence[int],
    depth: int,
    repeats: int,
    budget: float = inf,
    least: int = 0,
    watch: Watch = iter,
) -> dict[int, list[float]]:
    """Seconds of passes over so many rows after `depth` tokens; see `interleave`."""
    ids = tokens(cache, depth + max(wanted))
    pass_seconds(cache, ids, depth, 1)  # the first also allocates memory
    work = {rows: partial(pass_seconds, cache, ids, depth, rows) for rows in wanted}
    if 1 in work:
        work[1] = partial(_plain_seconds, cache, ids, depth)
    taken = interleave(work, repeats, budget, least, watch)
    prefill(cache, ids[:depth])
    return taken


def _plain_seconds(cache: Cache, ids: Sequence[int], depth: int) -> float:
    """Seconds of a one-row pass after another one, so that no new graph is built in it."""
    seconds = pass_seconds(cache, ids, depth, 1)
    return seconds if seconds > LONG else pass_seconds(cache, ids, depth, 1)


def switch_seconds(cache: Cache, depth: int) -> float:
    """How much longer a plain pass takes after a pass of two rows than after a plain one."""
    ids, shapes = tokens(cache, depth + 2), (2, 1, 1) * _SWEEPS
    taken = [pass_seconds(cache, ids, depth, rows) for rows in shapes]
    return min(taken[1::3]) - min(taken[2::3])


def _measure_draft_steps(cache: Cache, costs: LearnedCosts, budget: float) -> None:
    """Time draft steps over one, two and many tokens, if there is room.

    After about `budget` seconds none is repeated.
    """
    ends = perf_counter() + budget

    def least(tokens: int, repeats: int) -> float:
        best = step(tokens)
        while (repeats := repeats - 1) and perf_counter() < ends:
            best = min(best, step(tokens))
        return best

    depth = min(_CONTEXT, cache.n_ctx // 2)
    count = min(READ, cache.n_ctx - depth)
    step = partial(pass_seconds, cache, tokens(cache, depth + count), depth, rows=1)
    step(1)
    costs.add_draft_step(least(1, 8))
    if count > 1:
        costs.add_first_draft_step(least(2, 4), 2)
    if count > 2:
        costs.add_first_draft_step(least(count, 2), count)


def tokens(cache: Cache, count: int) -> list[int]:
    """Ids for measuring; different ones, for mixtures of experts."""
    return [(7 + 37 * k) % cache.n_vocab for k in range(count)]
