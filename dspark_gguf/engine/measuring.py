"""When costs of a pair are measured: first, again in each process, and while nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import inf
from time import perf_counter

from dspark_gguf.config import Speculation
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.timing import quick_profile, tokens
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned import Learned
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.waiting import Tell, untold

#: What each process checks of figures from a file: numbers of rows, and for how many seconds.
_CHECKED, _CHECK_SECONDS = (1, 4, 2), 0.3
#: Passes of each kind when figures are measured again; the first may allocate memory.
_REPEATS = 2
#: What attention costs a further row of a pass on a GPU, over the first; how much longer than its
#: bytes attention takes on a CPU, which computes (1.6 to 9 times on one, as busy as its neighbours
#: were); both guesses of `_attention_of` where nothing is known of the model.
_ROW_ON_GPU, _ON_CPU, _UNKNOWN = 0.05, 4.0, (0.5, 1e-4)


def measure(
    learned: Learned,
    target: SequenceCache,
    draft: SequenceCache | None,
    speculation: Speculation,
    budget: float,
    tell: Tell = untold,
) -> Learned:
    """`learned`, with the costs of these models measured now if they are not known.

    Measuring takes about `budget` seconds, more where a pass takes one, and empties the caches.
    `tell` is called before, and when it is seen to take longer.
    """
    costs = learned.costs
    learned.of_file = draft.calibration if isinstance(draft, Follower) else None
    costs.rereads = target.rollback == "replay"
    limit = min(speculation.max_lookup_tokens, target.max_rows - 1)
    if not costs.covers(limit, drafts=draft is not None):
        who = "the model costs" if draft is None else "both models cost"
        show = partial(tell, f"measuring once what {who} on this machine")
        costs.attention.depth = 0.0
        quick_profile(target, draft, costs, budget, limit, show)
        with suppress(OSError):  # now: who knows how this process ends
            learned.save()
    elif not learned.is_checked:
        measure_again(target, draft, costs, _CHECK_SECONDS, _CHECKED)
    learned.is_checked = True
    row, target_share = _attention_of(target)
    _, draft_share = _attention_of(draft)
    costs.expect_attention(target_share, draft_share, row)
    return learned


def measure_again(
    target: SequenceCache,
    draft: SequenceCache | None,
    costs: LearnedCosts,
    budget: float,
    rows: Sequence[int] = (),
) -> None:
    """Time a draft step and passes over so many rows; unless told, those least certain.

    For at most about `budget` seconds, or until an interrupt. It goes on behind the tokens that the
    caches hold, and takes that back; so only where a cache can drop single tokens.
    """
    if target.rollback != "removal" or isinstance(draft, Follower):
        return
    ends = perf_counter() + budget
    costs.attention.depth, costs.attention.conversations = target.length, 1
    works: list[tuple[SequenceCache, int, float]] = []
    if draft is not None and draft.rollback == "removal":
        works.append((draft, 1, float(costs.draft_seconds[0])))
    seconds = costs.target_seconds
    works += [(target, n, float(seconds[n - 1])) for n in rows or costs.least_certain()]
    for cache, count, expected in works:
        fits = count <= cache.max_rows and cache.length + count <= cache.n_ctx
        if not fits or perf_counter() + _REPEATS * expected > ends:
            continue
        least = min(_seconds_behind(cache, count) for _ in range(_REPEATS))
        if least == inf:
            return
        if cache is draft:
            costs.add_draft_step(least)
        else:
            costs.add_pass(count, least)


def _seconds_behind(cache: SequenceCache, count: int) -> float:
    """Seconds of a pass over `count` tokens behind those of the cache; infinite if interrupted."""
    length, ids = cache.length, tokens(cache, count)
    started = perf_counter()
    try:
        cache.decode(ids, count)
        return perf_counter() - started
    except Cancelled:
        return inf
    finally:
        cache.trim(length)


def _attention_of(cache: SequenceCache | None) -> tuple[float, float]:
    """What reading attention costs until it was seen.

    That of a further row of a pass over that of the first, which a CPU computes anew; and that of a
    token of context over a pass, by their bytes. A block reads the context once, however long.
    """
    if cache is None or isinstance(cache, BlockDraftCache):
        return 0.0, 0.0
    model = getattr(cache, "model", None)  # None: of a ``Llama``
    if model is None:
        return _UNKNOWN
    on_gpu = min(1.0, model.gpu_layers / max(model.n_layer, 1)) * model.options.kv_offload
    share = cache.context.cache_bytes / cache.context.n_ctx / model.size
    return on_gpu * _ROW_ON_GPU + (1.0 - on_gpu), share * (on_gpu + _ON_CPU * (1.0 - on_gpu))
