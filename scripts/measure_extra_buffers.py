"""Cost of passes with and without extra buffers (AMX, repacked weights), by number of rows.

Run ``python scripts/measure_extra_buffers.py MODEL.gguf [--threads N] [--repeats 9]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from threading import Event

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import open_cache
from dspark_gguf.engine.timing import passes

ROWS = (1, 2, 4, 8, 16, 32)


def measure(path: Path, repeats: int, threads: int) -> dict[str, dict[int, list[float]]]:
    """Seconds by setting and rows; the settings take turns, so that a busy moment affects both."""
    contexts = {}
    for way in ("off", "on"):
        options = ModelOptions(extra_buffers=way, n_gpu_layers="none", threads=threads)
        contexts[way] = open_cache(Model(path, options), 128, max(ROWS), Event())
    taken: dict[str, dict[int, list[float]]] = {way: {n: [] for n in ROWS} for way in contexts}
    for _ in range(repeats):
        for way, context in contexts.items():
            for rows, seconds in passes(context, ROWS, 16, repeats=1).items():
                taken[way][rows] += seconds
    return taken


def main(words: Sequence[str] | None = None) -> None:
    """Print a table: least milliseconds, relative to one row, and `on` relative to `off`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    asked = parser.parse_args(words)
    off, on = measure(asked.model, asked.repeats, asked.threads).values()
    heads = ("off, ms", "over 1", "on, ms", "over 1", "on/off", "median")
    print("rows" + "".join(f"{head:>10}" for head in heads))
    for rows in ROWS:
        one, other = min(off[rows]), min(on[rows])
        middle = median(b / a for a, b in zip(off[rows], on[rows], strict=True))
        print(
            f"{rows:>4}{1e3 * one:>10.1f}{one / min(off[1]):>10.2f}{1e3 * other:>10.1f}"
            f"{other / min(on[1]):>10.2f}{other / one:>10.2f}{middle:>10.2f}"
        )


if __name__ == "__main__":
    main()
