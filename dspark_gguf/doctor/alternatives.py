"""Time other settings that give the same results: threads, flash attention, cache types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from threading import Event

from dspark_gguf.doctor.measured import affordable_depth, text_tokens, too_small
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine import library
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.sequence import SequenceCache, open_cache
from dspark_gguf.engine.timing import interleave, pass_seconds
from dspark_gguf.errors import ModelError, ResourceError
from dspark_gguf.learned_costs import LearnedCosts

#: Seconds for each comparison.
_BUDGET = 2.0
#: Tokens of context before the passes that compare threads.
_SHALLOW = 16
#: Rows of the pass that stands for all passes with drafts.
_FEW = 4
_REPEATS, _LEAST_REPEATS = 7, 3
#: An alternative is suggested if it takes at most this share of the time, and was faster in every
#: repeat but one: anything less is noise on a machine that does other things as well.
_FASTER = 0.87


@dataclass(frozen=True, slots=True)
class Timing:
    """Other options that give the same results, compared with the present ones."""

    name: str  # the options that ask for it
    ratio: float  # its seconds over those of the present options, median
    is_faster: bool  # clearly so


def beside(alternatives: Mapping[str, Callable[[], float]], budget: float) -> list[Timing]:
    """Compare the first alternative with the others, in about `budget` seconds."""
    turns = _REPEATS + 1  # the first one pays for memory that the others reuse
    taken = interleave(alternatives, turns, budget, least=(_LEAST_REPEATS + 1) * len(alternatives))
    (_, *now), *_ = taken.values()
    found = []
    for name, (_, *times) in list(taken.items())[1:]:
        ratios = [one / other for one, other in zip(times, now, strict=False)]
        ratio, wins = median(ratios), sum(one < 1.0 for one in ratios)
        found.append(Timing(name, ratio, ratio <= _FASTER and wins >= len(ratios) - 1))
    return found


def thread_counts(now: int, cores: int) -> list[int]:
    """Numbers to try, the present one first."""
    # Half of the cores, because a container may have less of a CPU than the cores that it shows.
    return list(dict.fromkeys([now, cores, max(1, cores // 2)]))


def threads(pair: Pair) -> Section:
    """Time passes with other numbers of threads; the present number is restored afterwards."""
    if pair.target.gpu_layers > pair.target.n_layer:
        return Section("all layers are on the GPU: CPU threads hardly matter")
    if small := too_small(pair, _SHALLOW + _FEW):
        return small
    cache, tokens, options = pair.target_cache, text_tokens(pair), pair.target.options
    cores = library.physical_cores()
    present = library.threads_of(options)
    batch = " -tb {}" if options.threads_batch else ""
    prefill(cache, tokens[:_SHALLOW])

    def time_passes(*counts: int) -> float:
        cache.use_threads(*counts)
        return _seconds(cache, tokens, _SHALLOW)

    alternatives = {"now": partial(time_passes, *present)} | {
        f"-t {n}{batch.format(n)}": partial(time_passes, n, n)
        for n in thread_counts(present[0], cores)
        if (n, n) != present
    }
    try:
        found = beside(alternatives, _BUDGET)
    finally:
        cache.use_threads(*present)
    cache.trim(0)
    return compare(found, "one core: nothing to choose")


def attention(pair: Pair, known: LearnedCosts | None) -> Section:
    """Time flash attention and cache types, in a context long enough to show a difference."""
    if small := too_small(pair):
        return small
    depth = affordable_depth(pair, known, contexts=3)
    if not depth:
        return Section("flash attention, cache types: not timed, reading a context takes too long")
    section = compare(attention_timings(pair.target, text_tokens(pair), depth), "nothing to choose")
    return replace(section, text=f"at {depth} tokens: {section.text}")


def attention_timings(model: Model, tokens: Sequence[int], depth: int) -> list[Timing]:
    """Passes after `depth` tokens with flash attention on and off, and with a smaller cache."""
    options = model.options
    alternatives: dict[str, dict[str, str]] = {"now": {}}
    for value in ("on",) if _quantized(options.cache_type_v) else ("on", "off"):
        if options.flash_attn != value:
            alternatives[f"-fa {value}"] = {"flash_attn": value}
    if not _quantized(options.cache_type_k) and options.flash_attn != "off":
        alternatives["-ctk q8_0 -ctv q8_0"] = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    with ExitStack() as stack:
        work: dict[str, Callable[[], float]] = {}
        for name, changes in alternatives.items():
            try:
                cache = open_cache(model.with_options(**changes), depth + _FEW, _FEW, Event())
            except (ModelError, ResourceError):
                if not work:
                    raise
                continue  # not for this model: heads that no block of q8_0 divides, say
            stack.callback(cache.close)
            prefill(cache, tokens[:depth])
            work[name] = partial(_seconds, cache, tokens, depth)
        return beside(work, _BUDGET)


def compare(found: Sequence[Timing], nothing: str) -> Section:
    """What was timed against the present settings; `nothing` is the text if nothing was."""
    text = ", ".join(f"{one.name} takes x{one.ratio:.2f}" for one in found)
    findings = tuple(
        Finding(
            f"{one.name} takes x{one.ratio:.2f} of the time of the present options",
            f"Add {one.name} to your options.",
            wrong=False,
        )
        for one in sorted(found, key=lambda one: one.ratio)[:1]
        if one.is_faster
    )
    facts = {"seconds_over_now": {one.name: round(one.ratio, 3) for one in found}}
    return Section(f"{text} of the time now" if text else nothing, facts, findings)


def _seconds(cache: SequenceCache, tokens: Sequence[int], depth: int) -> float:
    """Seconds of a pass of one row and one of a few, after `depth` tokens."""
    taken = sum(pass_seconds(cache, tokens, depth, count) for count in (1, _FEW))
    cache.trim(depth)
    return taken


def _quantized(cache_type: str) -> bool:
    return cache_type not in ("f32", "f16", "bf16")
