"""The scheduler, replayed from a cold start on every recording with every cost table.

    python scripts/replay_targets.py [--markdown] [CHAINS.npz ...]

All figures are relative to plain decoding, except *ratio* and *of warm*.

    3 always       llama.cpp's default: three draft tokens in every round
    best static    the best of 37 static settings, chosen afterwards
    optimal        the scheduler with nothing learned
    ratio          optimal relative to the best static setting
    of warm        optimal relative to itself after it has learned from the same recording
    worst domain   optimal on its worst kind of text
    bound          a rule that knows which draft tokens will be accepted
    first 200      each kind of text alone, from a cold start: the worst first 200 tokens
    then           and the worst rest, if it has more than 100 tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import FixedCosts, load_table
from dspark_gguf.measure.chains import Chains, Guesses, load_chains
from dspark_gguf.measure.replay import Grid, play, replay
from dspark_gguf.schedule import Optimal
from dspark_gguf.visible import text_table

DATA = Path(__file__).parent.parent / "tests" / "data"
FIRST, REST = 200, 100


class Row(NamedTuple):
    """The figures of one recording and cost table."""

    pair: str
    table: str
    fixed: float
    static: float
    optimal: float
    warm: float
    worst: float
    bound: float
    first: float
    rest: float

    @property
    def of_warm(self) -> float:
        """Relative to a start that has learned from the same recording."""
        return self.optimal / self.warm

    @property
    def ratio(self) -> float:
        """Relative to the best static setting, or to plain decoding if all of them are slower."""
        return self.optimal / self.static

    def cells(self) -> list[str]:
        """One row of the table."""
        speeds = (self.fixed, self.static, self.optimal, self.ratio, self.of_warm, self.worst)
        numbers = (*speeds, self.bound, self.first, self.rest)
        return [self.pair, self.table, *(f"{x:.3f}" for x in numbers)]


HEAD = [
    *("pair", "table", "3 always", "best static", "optimal", "ratio", "of warm"),
    *("worst domain", "bound", "first 200", "then"),
]


def row(pair: str, table: str, texts: Sequence[Chains], costs: FixedCosts) -> Row:
    # No longer than the recorded chains: a rule that expects more would stop in the wrong places.
    limit = min(texts[0].depth, costs.limit)
    name = f"optimal:max={limit}"
    result = play(name, texts, costs)
    heads, tails = [], []
    for domain in result.domains:
        first, rest = split_texts([text for text in texts if text.domain == domain], FIRST)
        rule = Optimal(costs, Calibration(), limit)
        heads.append(replay(first, costs, rule).speedup)
        if sum(text.positions for text in rest) > REST:
            tails.append(replay(rest, costs, rule).speedup)
    return Row(
        pair,
        table,
        fixed=play("fixed:max=3", texts, costs).speedup,
        static=Grid.of(texts, costs).best()[1],
        optimal=result.speedup,
        warm=play(name, texts, costs, warm=texts).speedup,
        worst=min(sums.speedup for sums in result.domains.values()),
        bound=clairvoyant(texts, costs),
        first=min(heads),
        rest=min(tails, default=1.0),
    )


def clairvoyant(texts: Sequence[Chains], costs: FixedCosts) -> float:
    """Speedup of a rule that knows which draft tokens will be accepted: no rule can be faster.

    It is the minimum time from each position to the end, by backward induction over the text.
    """
    tokens, seconds = 0, 0.0
    for text in texts:
        depth = min(text.depth, costs.limit)
        steps = np.concatenate(([0.0], costs.draft_seconds[:depth]))
        price = steps + costs.target_seconds[: depth + 1]
        least = np.zeros(text.positions + 1)
        for t in range(text.positions - 1, -1, -1):
            # Drafting more tokens than are accepted only costs time.
            alive = min(int(text.survived[t].sum()), depth)
            reached = np.minimum(t + 1 + np.arange(alive + 1), text.positions)
            least[t] = (price[: alive + 1] + least[reached]).min()
        tokens, seconds = tokens + text.positions, seconds + float(least[0])
    return tokens * float(costs.target_seconds[0]) / seconds


def stretch(text: Chains, part: slice) -> Chains:
    """The given positions of a text."""
    lookup = text.lookup and Guesses(text.lookup.scores[part], text.lookup.survived[part])
    gap = None if text.gap is None else text.gap[part]
    return Chains(text.domain, text.confidence[part], text.survived[part], gap, lookup)


def split_texts(texts: Sequence[Chains], tokens: int) -> tuple[list[Chains], list[Chains]]:
    """The first `tokens` positions of all texts together, and the rest."""
    first: list[Chains] = []
    rest: list[Chains] = []
    for text in texts:
        cut = min(tokens, text.positions)
        tokens -= cut
        if cut:
            first.append(stretch(text, slice(cut)))
        if cut < text.positions:
            rest.append(stretch(text, slice(cut, None)))
    return first, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chains", nargs="*", type=Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    rows = [
        row(path.stem, table.stem, load_chains(path), load_table(table))
        for path in options.chains or sorted((DATA / "chains").glob("*.npz"))
        for table in sorted((DATA / "tables").glob("*.json"))
    ]
    cells = [one.cells() for one in rows]
    if options.markdown:
        lines = [HEAD, ["---"] * len(HEAD), *cells]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    else:
        print(text_table(HEAD, cells))
    ratios = [one.ratio for one in rows]
    print(
        f"\nover the best static setting: {mean(ratios):.3f} on average, {min(ratios):.3f} at "
        f"least; cold over warm: {mean(one.of_warm for one in rows):.3f} on average; worst first "
        f"200: {min(one.first for one in rows):.3f}, then {min(one.rest for one in rows):.3f}"
    )


if __name__ == "__main__":
    main()
