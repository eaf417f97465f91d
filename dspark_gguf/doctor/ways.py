"""Other settings that compute the same, timed: threads, flash attention, the cache's type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Event

from dspark_gguf.engine import library
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.sequence import SequenceCache, open_cache
from dspark_gguf.engine.timing import interleaved, pass_seconds
from dspark_gguf.errors import ModelError, ResourceError

#: Rows of the pass that stands for all passes with drafts.
_FEW = 4
_REPEATS, _LEAST_REPEATS = 7, 3
#: Another way is suggested where it takes at most this share of the time, and was faster in every
#: repeat but one: less is noise on a machine that does other things as well.
_FASTER = 0.87


@dataclass(frozen=True, slots=True)
class Way:
    """A way to compute beside the present one.

    Attributes:
        name: the options that ask for it.
        ratio: its seconds over those of the present way, median.
        is_faster: clearly so.

    """

    name: str
    ratio: float
    is_faster: bool


def beside(ways: Mapping[str, Callable[[], float]], budget: float) -> list[Way]:
    """Compare ways with the first of them, in turn, so that a busy moment falls on all.

    Args:
        ways: name -> does the work and returns seconds.
        budget: seconds; fewer repeats when they are over.

    """
    turns = _REPEATS + 1  # the first one pays for memory that the others reuse
    taken = interleaved(ways, turns, budget, least=(_LEAST_REPEATS + 1) * len(ways))
    (_, *now), *_ = taken.values()
    found = []
    for name, (_, *times) in list(taken.items())[1:]:
        ratios = [one / other for one, other in zip(times, now, strict=False)]
        ratio, wins = median(ratios), sum(one < 1.0 for one in ratios)
        found.append(Way(name, ratio, ratio <= _FASTER and wins >= len(ratios) - 1))
    return found


def thread_counts(now: int, cores: int) -> list[int]:
    """Numbers to try, the present one first: the cores, and half of them.

    Half, because inside a container the share of a CPU can be less than the cores that it shows.
    """
    return list(dict.fromkeys([now, cores, max(1, cores // 2)]))


def threads(cache: SequenceCache, tokens: Sequence[int], budget: float) -> list[Way]:
    """Time passes with other numbers of threads; the present ones are set again afterwards."""
    options = cache.model.options
    now = options.threads or library.physical_cores()
    present = now, options.threads_batch or now
    batch = " -tb {}" if options.threads_batch else ""
    depth = cache.length

    def timed(*counts: int) -> float:
        cache.use_threads(*counts)
        return _seconds(cache, tokens, depth)

    others = thread_counts(now, library.physical_cores())
    ways = {"now": partial(timed, *present)} | {
        f"-t {n}{batch.format(n)}": partial(timed, n, n) for n in others if (n, n) != present
    }
    try:
        return beside(ways, budget)
    finally:
        cache.use_threads(*present)


def attention(model: Model, tokens: Sequence[int], depth: int, budget: float) -> list[Way]:
    """Time passes after `depth` tokens with flash attention on and off, and a smaller cache."""
    options = model.options
    ways: dict[str, dict[str, str]] = {"now": {}}
    for value in ("on",) if _quantized(options.cache_type_v) else ("on", "off"):
        if options.flash_attn != value:
            ways[f"-fa {value}"] = {"flash_attn": value}
    if not _quantized(options.cache_type_k) and options.flash_attn != "off":
        ways["-ctk q8_0 -ctv q8_0"] = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    with ExitStack() as stack:
        work: dict[str, Callable[[], float]] = {}
        for name, changes in ways.items():
            try:
                cache = open_cache(model.with_options(**changes), depth + _FEW, _FEW, Event())
            except (ModelError, ResourceError):
                if not work:
                    raise
                continue  # not for this model: heads that no block of q8_0 divides, say
            stack.callback(cache.close)
            prefill(cache, tokens[:depth])
            work[name] = partial(_seconds, cache, tokens, depth)
        return beside(work, budget)


def _seconds(cache: SequenceCache, tokens: Sequence[int], depth: int) -> float:
    """Of a pass of one row and one of a few, after `depth` tokens."""
    taken = sum(pass_seconds(cache, tokens, depth, count) for count in (1, _FEW))
    cache.trim(depth)
    return taken


def _quantized(cache_type: str) -> bool:
    return cache_type not in ("f32", "f16", "bf16")
