"""Fit target and draft into memory: if both do not fit, the draft gets a smaller context.

Their needs are computed from the headers before either is loaded: a model that does not fit would
make the machine swap, or get this process killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.heads import is_own_draft, target_draft
from dspark_gguf.engine.memory import DEFAULT_CONTEXT, Need, default_context, need_of, room
from dspark_gguf.errors import ResourceError
from dspark_gguf.paths import GIB

#: Share of the free memory that is left for other programs.
_SPARE = 0.05
#: Shortest useful context of a draft.
_SHORTEST = 1024
_SMALL = "q8_0"
T = TypeVar("T")
#: Computes what a draft needs with these options and a context of so many tokens.
Needed: TypeAlias = Callable[[DraftOptions, int], Need]


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Bytes left for a draft beside its target."""

    main: int
    gpu: int | None = None  # None: there is no GPU

    @classmethod
    def of(
        cls,
        path: str | Path,
        options: ModelOptions | None,
        draft: DraftOptions,
        conversations: int = 1,
    ) -> FreeMemory:
        """The free memory less what this target will take; call it before the target is loaded."""
        header, options = read_header(path), options or ModelOptions()
        n_ctx = default_context(options, header.get("context_length", DEFAULT_CONTEXT))
        need = need_of(header, options, n_ctx, n_seq=conversations)
        return cls.beside_target(need, options, draft)

    @classmethod
    def beside_target(cls, target: Need, options: ModelOptions, draft: DraftOptions) -> FreeMemory:
        """The same, from what the target needs."""
        devices = library.devices()
        gpu = room(devices, draft, on_gpu=True)
        shares_gpu = not set(options.devices) or not draft.devices
        shares_gpu = shares_gpu or bool(set(options.devices) & set(draft.devices))
        if gpu is not None and shares_gpu:
            gpu -= target.at(on_gpu=True)
        main = room(devices, draft, on_gpu=False)
        main = library.free_memory() if main is None else main
        return cls(main - target.at(on_gpu=False), gpu)

    def has_room_for(self, need: Need) -> bool:
        """Whether this fits, with a little to spare."""
        on_gpu = self.gpu is None or need.at(on_gpu=True) <= self.gpu * (1.0 - _SPARE)
        # What is on the GPU needs next to nothing elsewhere.
        in_main = need.at(on_gpu=False)
        return on_gpu and (in_main <= self.main * (1.0 - _SPARE) or not in_main)


def free_for(draft: DraftOptions) -> FreeMemory:
    """The free memory for a draft whose target is already loaded."""
    return FreeMemory.beside_target(Need(0, 0, 0, 1, 0), ModelOptions(), draft)


def open_what_fits(
    path: Path,
    asked: DraftOptions,
    target: Header,
    n_ctx: int,
    free: FreeMemory,
    load: Callable[[DraftOptions], list[T]],
    shared: int = 0,
    n_seq: int = 1,
) -> tuple[list[T], DraftOptions, str]:
    """Load as much of a draft as fits beside a target with a context of `n_ctx` tokens.

    Or beside `n_seq` conversations of `n_ctx` tokens each, which share `shared` cells. Returns what
    `load` returned (empty if nothing fits), the options used, and what was reduced, in words.
    """
    header, most = read_header(path), n_ctx
    n_ctx = asked.n_ctx or min(n_ctx, header.get("context_length", n_ctx))
    need = partial(draft_need, header, target, shared=shared, n_seq=n_seq)
    why = ""
    for options in ways_to_fit(need, asked, n_ctx, free, most):
        try:
            caches = load(options)
        except ResourceError as error:  # it takes more than its header says
            why = why or error.problem
        else:
            return caches, options, what_gave_way(need, asked, options, n_ctx, free, why)
    return [], asked, what_gave_way(need, asked, None, n_ctx, free, why)


def draft_need(
    draft: Header,
    target: Header,
    options: ModelOptions,
    n_ctx: int,
    shared: int = 0,
    n_seq: int = 1,
) -> Need:
    """Memory that a draft of any kind needs, for `n_seq` conversations that share `shared` cells.

    The target's own heads are loaded with the target.
    """
    made_for, rows = target_draft(draft, target), 1
    if made_for is not None:
        n_ctx, rows = made_for.cells(n_ctx, shared, n_seq), made_for.rows
    elif n_seq > 1 and not options.n_ctx:
        n_ctx = shared
    heads, is_own = made_for.heads if made_for else None, is_own_draft(target, draft.path)
    return need_of(draft, options, n_ctx, True, heads, is_own, n_seq, rows)


def ways_to_fit(
    need: Needed, options: DraftOptions, n_ctx: int, free: FreeMemory, most: int | None = None
) -> Iterator[DraftOptions]:
    """Options with which the draft fits, the smallest change first.

    First the context shrinks to a quarter, then the cache is quantized, then the context shrinks
    further. A context of more than `most` tokens, the target's, would be wasted.
    """
    whole = min(n_ctx, most or n_ctx)
    small = options.model_copy(update={"cache_type_k": _SMALL, "cache_type_v": _SMALL})
    can_shrink = options.flash_attn != "off" and not _is_small(options)
    least = min(_SHORTEST, whole)
    lengths = [length for k in range(32) if least <= (length := whole >> k) < n_ctx]
    quarter = [length for length in lengths if length >= whole // 4]
    ways = [_with_context(options, length) for length in quarter]
    rest = [length for length in lengths if length <= whole // 4]
    ways += [_with_context(small if can_shrink else options, length) for length in rest]
    for way, length in ((options, n_ctx), *((way, way.n_ctx) for way in ways)):
        if free.has_room_for(need(way, length)):
            yield way


def what_gave_way(
    need_of_it: Needed,
    asked: DraftOptions,
    used: DraftOptions | None,
    n_ctx: int,
    free: FreeMemory,
    why: str = "",
) -> str:
    """What was reduced, as a sentence; empty if nothing. `why` is the error of a failed try."""
    if used is asked:
        return ""
    need = need_of_it(asked, n_ctx)
    on_gpu = free.gpu is not None and need.on_gpu > 0
    left = free.gpu if on_gpu and free.gpu is not None else free.main
    where = "on the GPU" if on_gpu else "in main memory"
    why = why or (
        f"the draft needs {need.at(on_gpu) / GIB:.1f} GiB {where}, and beside the target "
        f"{max(left, 0) / GIB:.1f} GiB are free"
    )
    if used is None:
        return f"{why}: the draft is not loaded, and guesses only come from the conversation"
    less = f"{why}: the draft's context is {used.n_ctx} tokens"
    return less + (f", its cache {_SMALL}" if _is_small(used) and not _is_small(asked) else "")


def _with_context(options: DraftOptions, length: int) -> DraftOptions:
    return options.model_copy(update={"n_ctx": length})


def _is_small(options: ModelOptions) -> bool:
    return max(map(library.bytes_per_value, (options.cache_type_k, options.cache_type_v))) < 1.5
