"""Passes that several sequences of a context share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from dspark_gguf.engine.protocol import Rows
from dspark_gguf.errors import CacheFullError

#: A `SequenceCache`, the tokens that it reads, and how many rows are wanted.
Reads: TypeAlias = tuple[Any, Sequence[int], int]


def run_together(parts: Sequence[Reads]) -> None:
    """One pass over (cache, tokens, rows wanted) of several sequences of a context, in order."""
    begun = [cache.begin_pass(tokens, n_rows) for cache, tokens, n_rows in parts]
    try:
        parts[0][0].context.run(begun)
    except CacheFullError:
        for cache, _, _ in parts:
            cache.end_pass(())
        raise
    first = 0
    for cache, tokens, _ in parts:
        cache.end_pass(tokens, first)
        first += len(tokens)


def rows_together(parts: Sequence[Reads]) -> list[Rows]:
    """The rows of each part, valid until the next pass, from as few passes as the memory allows."""
    first = parts[0][0]
    sizes = [(cache.sequence, len(tokens), n_rows) for cache, tokens, n_rows in parts]
    groups = _apart(sizes) if first.rollback == "snapshots" else [list(range(len(parts)))]
    found = dict.fromkeys(range(len(parts)), first.context.rows(0, 0))
    for group in groups:
        run_together([parts[k] for k in group])
        end = 0
        for k in group:
            _, size, n_rows = sizes[k]
            end += size
            rows = first.context.rows(end - n_rows, n_rows)
            found[k] = rows.copy() if len(groups) > 1 else rows
            if n_rows <= 1:
                parts[k][0].forget_snapshots()
    return list(found.values())


def _apart(parts: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Places of parts of a pass, of sequences with so many tokens and rows, to be read in one call.

    Of sequences that follow each other and read as many tokens, llama.cpp makes one pass, for which
    it may move others to another cell, but without their snapshots. So those that read more than
    one row, and may take back some, come after all others, and only the first call is of several.
    """
    kept = [k for k, (_, size, n_rows) in enumerate(parts) if size and n_rows <= 1]
    runs = list[list[int]]()
    for k, (sequence, size, n_rows) in enumerate(parts):
        if n_rows <= 1:
            continue
        if runs and parts[runs[-1][-1]][:2] == (sequence - 1, size):
            runs[-1].append(k)
        else:
            runs.append([k])
    together = max(runs, key=len, default=[])
    alone = [[k] for run in runs if run is not together for k in run]
    return [group for group in (kept, together, *alone) if group]
