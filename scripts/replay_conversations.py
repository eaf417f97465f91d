"""Several conversations in one pass: the scheduler, replayed on recordings with cost tables.

    python scripts/replay_conversations.py [--counts 1,2,4,8] [--tables NAME,...] [CHAINS.npz ...]

Each figure is the throughput from a cold start, relative to plain batching of as many
conversations. *default*: without options. *lookup*: prompt lookup alone. *known*: prompt lookup
with a rule that knows which guesses are right and verifies only those. Recordings with prompt
lookup are split into the kinds of text that repeat their prompt and those that do not.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.cost import FixedCosts, load_table
from dspark_gguf.measure.bench.conversations import COPYING
from dspark_gguf.measure.chains import Chains, load_chains
from dspark_gguf.schedule import SharedCosts, Source, StoppingRule, make_stopping_rule
from dspark_gguf.visible import text_table
from tests.replay_many import extended, replay_many

DATA = Path(__file__).parent.parent / "tests" / "data"
#: Maximum copied tokens of a draft; minimum texts in the queue for each conversation of a pass;
#: iterations until the rate of `known` has converged.
COPIES, QUEUE, TURNS = 12, 3, 6


def rule_of(costs: SharedCosts, steps: int, copies: int) -> StoppingRule:
    """The default rule with nothing learned; 0 steps or copies: without that drafter."""
    model = Source("model", steps, Calibration()) if steps else None
    lookup = Source("lookup", copies, Calibration.of_copies(), is_free=True) if copies else None
    return make_stopping_rule(Speculation(), costs, model, lookup)


def known(texts: Sequence[Chains], costs: FixedCosts, count: int) -> float:
    """Relative throughput if each pass verifies right copies only, the number that pays best."""
    seconds = extended(costs).target_seconds
    plain = rate = count / float(seconds[count - 1])
    for _ in range(TURNS):
        waiting, going = deque(texts), list[tuple[Chains, int]]()
        tokens, spent = 0, 0.0
        while len(waiting) + len(going) >= count:
            while len(going) < count:
                going.append((waiting.popleft(), 0))
            right = [_right(text, place) for text, place in going]
            most = min(sum(right), len(seconds) - count)
            worth = np.arange(most + 1) - rate * seconds[count - 1 : count + most]
            left = verified = int(worth.argmax())
            for k, one in enumerate(right):
                take, (text, place) = min(one, left), going[k]
                going[k], left = (text, place + take + 1), left - take
            tokens, spent = tokens + count + verified, spent + float(seconds[count + verified - 1])
            going = [(text, place) for text, place in going if place < text.positions]
        rate = tokens / spent
    return rate / plain


def _right(text: Chains, place: int) -> int:
    """Number of copied tokens that are right at `place` and not at the end of the text."""
    assert text.lookup is not None
    return min(text.lookup.at(place)[1], text.positions - place - 1, COPIES)


def kinds_of(texts: Sequence[Chains]) -> dict[str, list[Chains]]:
    """The texts of a recording, split by whether they repeat their prompt if it has copies."""
    if texts[0].lookup is None:
        return {"all": list(texts)}
    copying = [text for text in texts if text.domain in COPYING]
    return {"new": [text for text in texts if text.domain not in COPYING], "copying": copying}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chains", nargs="*", type=Path)
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--tables", help="names of cost tables; default: all")
    options = parser.parse_args()
    counts = [int(word) for word in options.counts.split(",")]
    tables = {path.stem: load_table(path) for path in sorted(DATA.glob("*/*.json"))}
    names = options.tables.split(",") if options.tables else list(tables)
    rows, least = [], []
    for path in options.chains or sorted(DATA.glob("*/*.npz")):
        recorded = load_chains(path)
        depth, copies = min(recorded[0].depth, 12), COPIES * (recorded[0].lookup is not None)
        for table in names:
            for kind, some in kinds_of(recorded).items():
                if not some:
                    continue
                queues = [some * (1 + QUEUE * n // len(some)) for n in counts]
                ways = {"default": depth, "lookup": 0}
                figures = {
                    name: [
                        replay_many(
                            queue, tables[table], partial(rule_of, steps=steps, copies=copies), n
                        ).over_plain
                        for queue, n in zip(queues, counts, strict=True)
                    ]
                    for name, steps in ways.items()
                    if (copies if name == "lookup" else depth)
                }
                least += [one for each in figures.values() for one in each]
                if copies:
                    runs = zip(queues, counts, strict=True)
                    figures["known"] = [known(queue, tables[table], n) for queue, n in runs]
                for name, each in figures.items():
                    rows.append([path.stem, table, kind, name, *(f"{x:.3f}" for x in each)])
    print(text_table(["pair", "table", "text", "drafts", *map(str, counts)], rows))
    print(f"\nover plain batching: {mean(least):.3f} on average, {min(least):.3f} at least")


if __name__ == "__main__":
    main()
