"""One round of several conversations: draft in lockstep, and choose what to verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, cast

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.engine.protocol import Pass
from dspark_gguf.engine.sequence import SequenceCache, decode_together
from dspark_gguf.errors import CacheFullError
from dspark_gguf.generation import Generation
from dspark_gguf.records import NO_DRAFT, Draft
from dspark_gguf.schedule import SharedCosts, allot


def draft_together(
    runs: Sequence[Generation], max_catch_up: int, costs: SharedCosts, free: Callable[[], bool]
) -> list[Draft]:
    """Draft for all conversations; each pass of the draft model serves all that need one.

    A draft model that has to catch up on more than `max_catch_up` tokens, or on more than its share
    of a batch, does so in a separate pass. If it has too few cells and `free` cannot free any, the
    newest conversation gets no drafts until others end: otherwise they would evict each other in
    turn and reread everything.
    """
    works = [run.draft() for run in runs]
    drafts, wanted = [NO_DRAFT] * len(runs), dict[int, Pass]()

    def advance(k: int, rows: Any = None, full: CacheFullError | None = None) -> None:
        wanted.pop(k, None)
        try:
            each = works[k].throw(full) if full else works[k].send(rows)
            if cast(SequenceCache, each.cache).is_crowded:
                each = works[k].throw(CacheFullError("the draft has no free cells", ""))
            wanted[k] = each
        except StopIteration as done:
            drafts[k] = done.value
        except CacheFullError:
            drafts[k] = NO_DRAFT

    for k in range(len(runs)):
        advance(k)
    while wanted:
        started = perf_counter()
        reads = {k: _reads(runs[k], each, costs) for k, each in wanted.items()}
        guesses = {k: each.n_rows for k, each in wanted.items()}
        context = cast(SequenceCache, next(iter(wanted.values())).cache).context
        most = min(max_catch_up, context.n_batch // len(wanted))
        group = [k for k, read in reads.items() if read > most][:1] or list(wanted)
        longest, width = (max(of[k] for k in group) for of in (reads, guesses))
        newest = cast(SequenceCache, wanted[group[-1]].cache)
        length = newest.length
        try:
            found = decode_together([wanted[k] for k in group])
        except CacheFullError as full:
            is_full = not free()
            if is_full or newest.length != length:  # it has read a part, which is dropped
                newest.trim(0)
                newest.is_crowded = is_full
                advance(group[-1], full=full)
            continue
        for k, rows in zip(group, found, strict=True):
            advance(k, rows)
        costs.see_draft_step(len(group), longest, perf_counter() - started, width)
    return drafts


def _reads(run: Generation, each: Pass, costs: SharedCosts) -> int:
    """Tokens that a pass of the draft reads, with the one that it guesses after."""
    if costs.is_block:  # its pass begins with what waits in the cache
        return run.drafter.behind(run.tokens)
    return 1 + len(each.tokens) - each.n_rows


def _survival(run: Generation, draft: Draft) -> Floats | None:
    """As its rule says; one that never drafts has nothing to weigh, and keeps nobody from it."""
    found = run.scheduler.survival(draft)
    return np.zeros(0) if found is None and not draft.tokens else found


def verify_together(
    runs: Sequence[Generation],
    drafts: Sequence[Draft],
    costs: SharedCosts,
    most: int,
    joint: bool = True,
    equal: bool = False,
) -> list[Pass]:
    """The parts of a pass that verifies as many draft tokens as pay, at most `most`.

    Unless `joint`, each draft is verified as it is: under `rejection` no choice may depend on later
    tokens. If `equal`, all verify the same number of tokens.
    """
    lengths = [len(draft) for draft in drafts]
    pairs = zip(runs, drafts, strict=True) if any(lengths) and joint and len(runs) > 1 else ()
    known = [each for run, one in pairs if (each := _survival(run, one)) is not None]
    if known and len(known) == len(runs):
        rate = max(run.scheduler.rate for run in runs)
        lengths = allot(known, costs.pass_seconds, rate, most, equal)
    elif sum(lengths) > most:
        lengths = [min(length, most // len(runs)) for length in lengths]
    chosen = [
        draft if len(draft) == length else draft.verify(length)
        for draft, length in zip(drafts, lengths, strict=True)
    ]
    costs.set_pass(chosen)
    return [run.step(draft) for run, draft in zip(runs, chosen, strict=True)]
