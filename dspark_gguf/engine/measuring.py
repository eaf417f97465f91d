"""When a pair's costs are measured: at first use, once in each process, and when idle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from time import perf_counter
from typing import TypeAlias

from dspark_gguf.config import Speculation
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.states import StateCache
from dspark_gguf.engine.timing import LONG, READ, guess_seconds, quick_profile, tokens, waits
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned import Learned
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.progress import ProgressCallback, no_progress
from dspark_gguf.schedule.expected import likely_saving

#: Seconds that measuring a new pair may take.
PROFILE_SECONDS = 2.0
#: Numbers of rows that each process measures to check figures from a file, and for how long.
_CHECKED, _CHECK_SECONDS = (1, 4, 2), 0.3
#: Passes of each kind when figures are measured again; the first may allocate memory.
_REPEATS = 2
#: If a draft seems to save less than this share of the time, but the figures are uncertain, a first
#: profile measures them again, so many times, with so many of the smallest numbers of rows. One
#: stall could cause this, and a draft that is never used is never measured again.
_SAVES_LITTLE, _ASKED, _ASKED_ROWS = 0.1, 2, 3
#: Cells needed to time the guesses of a prediction head.
_GUESSES = 2
#: Guesses for `_attention_of`: cost of a further row's attention on a GPU, relative to the first;
#: how much longer attention takes on a CPU than reading its bytes (1.6 to 9 times were measured on
#: a shared machine); both figures if nothing is known about the model.
_ROW_ON_GPU, _ON_CPU, _UNKNOWN = 0.05, 4.0, (0.5, 1e-4)

#: Expected seconds, the function that measures, and the one that learns from the result.
_Work: TypeAlias = tuple[float, Callable[[], tuple[float, ...]], Callable[..., None]]


def measure(
    learned: Learned,
    target: SequenceCache,
    draft: SequenceCache | None,
    speculation: Speculation,
    budget: float,
    on_progress: ProgressCallback = no_progress,
) -> Learned:
    """Measure the costs of these models if they are unknown; returns `learned`.

    Measuring takes about `budget` seconds, more if a single pass takes seconds, and empties the
    caches. `on_progress` is called first, and again if it will take longer.
    """
    costs = learned.costs
    learned.of_file = draft.calibration if isinstance(draft, Follower) else None
    costs.rereads = target.rollback == "replay"
    limit = min(speculation.max_lookup_tokens, target.max_rows - 1)
    if not costs.covers(limit, drafts=draft is not None):
        who = "the model costs" if draft is None else "both models cost"
        show = partial(on_progress, f"measuring once what {who} on this machine")
        costs.attention.depth = 0.0
        first_profile(target, draft, costs, budget, limit, show)
        learned.save()  # now, in case this process is killed
    elif not learned.is_checked:
        measure_again(target, draft, costs, _CHECK_SECONDS, _CHECKED)
    learned.is_checked = True
    row, target_share = _attention_of(target)
    _, draft_share = _attention_of(draft)
    costs.expect_attention(target_share, draft_share, row)
    return learned


def first_profile(
    target: SequenceCache,
    draft: SequenceCache | None,
    costs: LearnedCosts,
    budget: float,
    limit: int,
    show: Callable[[float], object] = lambda left: None,
) -> None:
    """See `quick_profile`; figures by which drafting hardly pays are measured again.

    Raises `Cancelled` on an interrupt.
    """
    quick_profile(target, draft, costs, budget, limit, show)
    for _ in range(0 if draft is None else _ASKED):
        rows = [count for count in costs.measured_rows[:_ASKED_ROWS] if costs.is_doubtful(count)]
        saves = likely_saving(costs.target_seconds[: limit + 1], costs.draft_seconds[:limit])
        if saves >= _SAVES_LITTLE or not (rows or costs.is_draft_doubtful):
            return
        works = [*_works(target, draft, costs, rows)]
        repeats = _REPEATS if costs.target_seconds[0] <= LONG else 1
        show(repeats * sum(expected for expected, *_ in works))
        _time(works, target, draft, repeats)


def measure_again(
    target: SequenceCache,
    draft: SequenceCache | None,
    costs: LearnedCosts,
    budget: float,
    rows: Sequence[int] | None = None,
) -> None:
    """Time guesses of the draft and passes over these `rows`, by default the least certain ones.

    Takes at most about `budget` seconds, and ends at an interrupt. It decodes after the tokens in
    the caches, and rolls back.
    """
    costs.attention.depth, costs.attention.conversations = target.length, 1
    with suppress(Cancelled):
        works = _works(target, draft, costs, rows)
        _time(works, target, draft, _REPEATS, perf_counter() + budget)


def _time(
    works: Iterable[_Work],
    target: SequenceCache,
    draft: SequenceCache | None,
    repeats: int,
    ends: float = inf,
) -> None:
    """Do what can be done until `ends`; afterwards the caches hold what they held before."""
    with ExitStack() as held:
        own = [] if draft is None or isinstance(draft, Follower) else [draft]
        for cache in (target, *own):
            held.enter_context(cache.holding())
        for expected, measured, learn in works:
            if perf_counter() + repeats * expected <= ends:
                taken = [measured() for _ in range(repeats)]
                learn(*map(min, zip(*taken, strict=True)))


def _works(
    target: SequenceCache,
    draft: SequenceCache | None,
    costs: LearnedCosts,
    rows: Sequence[int] | None,
) -> Iterator[_Work]:
    """What can be measured with the room left, the draft first."""
    guess, target_seconds = float(costs.draft_seconds[0]), costs.target_seconds
    if isinstance(draft, Follower):
        end, waiting = target.length, waits(draft)
        is_ready = not end or draft.is_ready(end)
        if is_ready and end + waiting + _GUESSES <= min(target.n_ctx, draft.room):
            behind = costs.catch_up_seconds(max(0, draft.seen - draft.covered))
            last = 1 if isinstance(draft, StateCache) else draft.max_drafts
            guesses = float(costs.draft_seconds[[0, last - 1]].sum())
            whole = behind + guesses + float(target_seconds[waiting - 1])
            yield whole, partial(guess_seconds, target, draft), partial(_learn_guess, costs, draft)
    elif draft is not None and draft.length + 2 <= draft.n_ctx:
        yield guess, partial(_seconds_behind, draft, 1, 1), costs.add_draft_step
        yield guess, partial(_seconds_behind, draft, 2, 1), partial(_learn_first, costs, 2)
        if costs.is_draft_doubtful and draft.length + READ <= draft.n_ctx:
            read = partial(_seconds_behind, draft, READ, 1)
            yield guess + costs.catch_up_seconds(READ), read, partial(_learn_first, costs, READ)
    for count in costs.least_certain() if rows is None else rows:
        if count <= target.max_rows and target.length + count <= target.n_ctx:
            measured = partial(_seconds_behind, target, count, count)
            yield float(target_seconds[count - 1]), measured, partial(costs.add_pass, count)


def _learn_guess(costs: LearnedCosts, draft: Follower, first: float, step: float) -> None:
    if isinstance(draft, StateCache):
        costs.add_first_draft_step(first, 1)
        costs.add_draft_step(step if draft.max_drafts > 1 else first)
    else:
        costs.add_block(1, first)
        costs.add_block(draft.max_drafts, step)


def _learn_first(costs: LearnedCosts, tokens: int, seconds: float) -> None:
    costs.add_first_draft_step(seconds, tokens)


def _seconds_behind(cache: SequenceCache, count: int, n_rows: int) -> tuple[float]:
    """Seconds of a pass over `count` tokens after those in the cache."""
    length, ids = cache.length, tokens(cache, count)
    started = perf_counter()
    try:
        cache.decode(ids, n_rows)
        return (perf_counter() - started,)
    finally:
        cache.trim(length)


def _attention_of(cache: SequenceCache | None) -> tuple[float, float]:
    """Guesses for the cost of attention until it is measured.

    The cost of a further row relative to the first (a CPU computes each anew), and the cost of a
    token of context relative to a pass, by bytes. A block draft reads the context only once.
    """
    if cache is None or isinstance(cache, BlockDraftCache):
        return 0.0, 0.0
    model = getattr(cache, "model", None)  # None: of a ``Llama``
    if model is None:
        return _UNKNOWN
    on_gpu = min(1.0, model.gpu_layers / max(model.n_layer, 1)) * model.options.kv_offload
    share = cache.context.cache_bytes / cache.context.n_ctx / model.size
    return on_gpu * _ROW_ON_GPU + (1.0 - on_gpu), share * (on_gpu + _ON_CPU * (1.0 - on_gpu))
