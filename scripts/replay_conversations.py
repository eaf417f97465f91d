"""Several conversations in one pass, replayed on recorded pairs x cost tables from a cold start.

    python scripts/replay_conversations.py [--counts 1,2,4,8] [CHAINS.npz ...]

Each figure is the throughput over plain batching of as many conversations; *lookup* is with copies
of the conversation alone, *copying* the same for the kinds of text that repeat their prompt.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.cost import load_table
from dspark_gguf.measure.bench.conversations import COPYING
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.measure.charts import text_table
from dspark_gguf.measure.replay_many import replay_many
from dspark_gguf.schedule import SharedCosts, Source, StoppingRule, make_stopping_rule

DATA = Path(__file__).parent.parent / "tests" / "data"


def rule_of(costs: SharedCosts, steps: int, copies: int) -> StoppingRule:
    """The default's rule, with nothing learned; 0: without that drafter."""
    model = Source("model", steps, Calibration()) if steps else None
    lookup = Source("lookup", copies, Calibration.of_copies(), is_free=True) if copies else None
    return make_stopping_rule(Speculation(), costs, model, lookup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chains", nargs="*", type=Path)
    parser.add_argument("--counts", default="1,2,4,8")
    options = parser.parse_args()
    counts = [int(word) for word in options.counts.split(",")]
    rows, least = [], []
    for path in options.chains or sorted((DATA / "chains").glob("*.npz")):
        texts = load_chains(path)
        depth = min(texts[0].depth, 12)
        copying = [text for text in texts if text.domain in COPYING]
        copies = 12 if texts[0].lookup is not None else 0
        for table in sorted((DATA / "tables").glob("*.json")):
            costs = load_table(table)
            kinds = [("default", texts, depth, copies), ("lookup", texts, 0, copies)]
            kinds.append(("copying", copying, 0, copies))
            for name, some, steps, free in kinds:
                if not some or not (steps or free):
                    continue
                make_rule = partial(rule_of, steps=steps, copies=free)
                figures = [
                    replay_many(some * (1 + 3 * n // len(some)), costs, make_rule, n).over_plain
                    for n in counts
                ]
                least += figures
                rows.append([path.stem, table.stem, name, *(f"{x:.3f}" for x in figures)])
    print(text_table(["pair", "table", "drafts", *map(str, counts)], rows))
    print(f"\nover plain batching: {mean(least):.3f} on average, {min(least):.3f} at least")


if __name__ == "__main__":
    main()
