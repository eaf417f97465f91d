"""One round of several conversations: their draft steps in lockstep, and what is verified."""

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
    runs: Sequence[Generation], few: int, costs: SharedCosts, free: Callable[[], bool]
) -> list[Draft]:
    """The drafts of all; each pass of the draft model serves all that want one.

    More than `few` tokens that a draft model missed, or than its share of a batch, are read in a
    pass of their own. Where its cells do not suffice and `free` finds none, the newest conversation
    does without until others end: else they would push each other out in turn, and read all again.
    """
    works = [run.draft() for run in runs]
    drafts, wanted = [NO_DRAFT] * len(runs), dict[int, Pass]()

    def go_on(k: int, rows: Any = None, full: CacheFullError | None = None) -> None:
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
        go_on(k)
    while wanted:
        started = perf_counter()
        reads = {k: _reads(runs[k], each, costs) for k, each in wanted.items()}
        guesses = {k: each.n_rows for k, each in wanted.items()}
        context = cast(SequenceCache, next(iter(wanted.values())).cache).context
        most = min(few, context.n_batch // len(wanted))
        group = [k for k, read in reads.items() if read > most][:1] or list(wanted)
        longest, width = (max(of[k] for k in group) for of in (reads, guesses))
        newest = cast(SequenceCache, wanted[group[-1]].cache)
        length = newest.length
        try:
            found = decode_together([wanted[k] for k in group])
        except CacheFullError as full:
            is_full = not free()
            if is_full or newest.length != length:  # it has read a part, and would read that again
                newest.trim(0)
                newest.is_crowded = is_full
                go_on(group[-1], full=full)
            continue
        for k, rows in zip(group, found, strict=True):
            go_on(k, rows)
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
    """The parts of a pass that verifies at most `most` draft tokens, as many as pay.

    Unless `joint`, each draft is verified as it is: under `rejection` no choice may depend on what
    comes after a token. If `equal`, all verify the same number of tokens.
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
