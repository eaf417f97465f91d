"""Copies, looks, and both, replayed on recorded chains: speed over plain decoding by kind of text.

    dspark-gguf trace -m TARGET -d DRAFT --prompts configs/prompts/copying.jsonl -o chains.npz
    python scripts/replay_copies.py chains.npz

On curves of what a pass costs: two of 2 cores, one of many (docs/measurements.md), a GPU-like and a
Metal-like one. Each cell: lookup / the draft model / both. Nothing is known at first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dspark_gguf.cost import FixedCosts
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.measure.compare import play

ROWS = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65)
#: Seconds of passes over `ROWS`, and of a look, over those of a pass over one row.
CURVES = {
    "2 cores, F16": ((1, 1.5, 1.71, 1.98, 1.99, 2.35, 2.6, 3.4, 4.3, 6.1, 7.8, 11, 14.5), 0.6),
    "2 cores, Q8_0": ((1, 1.71, 2.53, 2.53, 2.87, 3.1, 3.6, 5.2, 6.5, 9.2, 11.9, 17.5, 23), 0.9),
    "CPU, many cores": ((1, 1.21, 1.4, 1.63, 1.9, 2.3, 2.7, 3.5, 4.3, 6, 8, 12, 16), 0.1),
    "Metal, gentle": ((1, 1.1, 1.2, 1.28, 1.5, 2, 2.47, 3.5, 4.5, 6.5, 8.5, 12, 16), 0.15),
    "GPU": ((1, 1.03, 1.05, 1.08, 1.1, 1.15, 1.6, 1.65, 1.7, 2.2, 2.3, 3, 4), 0.15),
}
RULES = ("lookup", "optimal:max=12", "cascade")


def main() -> None:
    texts = load_chains(Path(sys.argv[1]))
    domains = list(dict.fromkeys(text.domain for text in texts))
    print("| table | all | " + " | ".join(domains) + " |")
    print("|---" * (len(domains) + 2) + "|")
    for name, (rows, look) in CURVES.items():
        target = np.interp(np.arange(1, 66), ROWS, rows)
        costs = FixedCosts(target, look * np.arange(1, 65))
        played = [play(rule, texts, costs) for rule in RULES]
        cells = [" / ".join(f"{result.speedup:.2f}" for result in played)]
        cells += [" / ".join(f"{r.domain_speedup(domain):.2f}" for r in played)
                  for domain in domains]  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
