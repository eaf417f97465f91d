"""Is the scheduler slower than the best fixed draft length? On tiny models, for each kind of draft.

    python scripts/measure_heads.py [--texts 6] [--tokens 80] [--layers 24] [--tables NAME,...]

Each target repeats a cycle of 40 tokens, and its draft is right after a certain share of them. The
gaps between the draft's two best logits are distributed as in real drafts of this acceptance rate.
Layers that add nothing make the target slow. The answers are real, but rounds are not timed: the
costs of passes, guesses and prompt processing are measured once for each kind of draft, and each
round is charged by these. Further rows of a pass are expensive in tiny models (*rows of: this*), so
the same is also computed with the costs of rows on other machines (tests/data/tables).

*costs*: a first guess, a further one, a pass of two rows and one of five, in plain passes. Cells:
the best number of guesses per round (of 0, 1, 2, 3, 4 and 6, chosen afterwards); its speed relative
to plain decoding; the speed of the scheduler with nothing learned; its speed after the same texts.
*cold*, *warm*: these two relative to the best fixed number, the worst cell of the row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dspark_gguf import Decoder, Limits, Sampling, Speculation
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.cost import FixedCosts, load_table
from dspark_gguf.engine.pair import Pair
from dspark_gguf.learned import Learned
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.records import Round
from dspark_gguf.schedule import StoppingRule, make_stopping_rule
from dspark_gguf.schedule.learning import usual_seconds
from tests.tiny_rigs import KINDS, PROMPT, write_rig

AGREEMENTS, DEPTHS = (0.3, 0.5, 0.7, 0.9), (1, 2, 3, 4, 6)
GREEDY = Sampling(temperature=0, ignore_eos=True)
EXACT = {
    "n_ctx": 512, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
TABLES = Path(__file__).resolve().parent.parent / "tests" / "data" / "tables"


class Measured(FixedCosts):
    """Measured costs; how those of the target grow with rows may come from another `curve`."""

    def __init__(self, costs: LearnedCosts | FixedCosts, curve: FixedCosts | None = None) -> None:
        rows = costs.target_seconds
        if curve is not None:
            rows = curve.target_seconds * float(rows[0] / curve.target_seconds[0])
        super().__init__(rows, costs.draft_seconds, rereads=costs.rereads)
        self.catch_up_seconds = costs.catch_up_seconds  # type: ignore[method-assign]

    def over_plain(self, rounds: Sequence[Round]) -> float:
        """Speed of these rounds relative to plain decoding."""
        read = [sum(each.caught_up for each in round.draft.segments) for round in rounds]
        seconds = sum(usual_seconds(self, round) for round in rounds)
        seconds += sum(map(self.catch_up_seconds, read))
        tokens = sum(len(round.tokens) for round in rounds)
        return tokens * float(self.target_seconds[0]) / seconds

    def __str__(self) -> str:
        plain = self.target_seconds[0]
        first, second = self.draft_seconds[:2] / plain
        two, five = self.target_seconds[[1, 4]] / plain
        return f"{first:.2f} {second - first:.2f} {two:.2f} {five:.2f}"


class Cell(NamedTuple):
    """Speeds on one rig, relative to plain decoding."""

    depth: int  # the best fixed number of guesses
    fixed: float
    cold: float
    warm: float

    def __str__(self) -> str:
        return f"{self.depth}: {self.fixed:.2f} {self.cold:.2f} {self.warm:.2f}"


class Rig:
    """Pairs with one kind of draft, which is right after the share `agreement` of the tokens.

    In each pair it is right after other tokens, because with a single cycle, a fixed number of
    guesses may be in step with it.
    """

    def __init__(
        self, stack: ExitStack, kind: str, agreement: float, layers: int, texts: int, tokens: int
    ) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.drafter, self.tokens = KINDS[kind], tokens
        self.pairs = [
            stack.enter_context(
                Pair(
                    *write_rig(folder, kind, agreement, layers, seed),
                    ModelOptions(**EXACT),
                    DraftOptions(**EXACT),
                )
            )
            for seed in range(texts)
        ]

    def costs(self) -> LearnedCosts:
        """Measured now."""
        return self.pairs[0].learned(Speculation(drafter=self.drafter, learn=False)).costs

    def rounds(
        self, costs: Measured, learned: Learned | None = None, depth: int = 0
    ) -> list[Round]:
        """All texts, one after another, with a fixed number of guesses or with one scheduler."""
        how = Speculation(drafter=self.drafter, learn=False)
        if depth:
            always = {"mode": "on", "draft_max": depth, "draft_min_prob": 0.0}
            how = how.model_copy(update=always)
        rules: list[StoppingRule] = []

        def schedule(speculation: Speculation, _: object, *sources: Any) -> StoppingRule:
            if not rules:
                rules.append(make_stopping_rule(speculation, costs, *sources))
            return rules[0]

        rounds = []
        for pair in self.pairs:
            decoder = Decoder.for_pair(pair, GREEDY, how, learned or Learned(), schedule=schedule)
            decoder.reset()
            rounds += list(decoder.generate(PROMPT, Limits(max_tokens=self.tokens)))[1:]
        return rounds

    def cells(self, all_costs: Sequence[Measured]) -> Iterator[Cell]:
        """For each of these costs, the best fixed number of guesses and the scheduler."""
        fixed = {depth: self.rounds(all_costs[0], depth=depth) for depth in DEPTHS}
        for costs in all_costs:
            speeds = {0: 1.0} | {depth: costs.over_plain(rounds) for depth, rounds in fixed.items()}
            best, learned = max(speeds, key=speeds.__getitem__), self.pairs[0].copy_costs()
            cold, warm = (costs.over_plain(self.rounds(costs, learned)) for _ in range(2))
            yield Cell(best, speeds[best], cold, warm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tables", default="cpu-many-cores,gpu-step-at-9")
    asked = parser.parse_args()
    curves = {"this": None} | {
        name: load_table(TABLES / f"{name}.json") for name in asked.tables.split(",") if name
    }
    heads = ["draft", "rows of", "costs", *(f"{a:.0%} right" for a in AGREEMENTS), "cold", "warm"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    least = []
    for kind in asked.kinds.split(","):
        columns, all_costs = [], []
        for agreement in AGREEMENTS:
            with ExitStack() as stack:
                rig = Rig(stack, kind, agreement, asked.layers, asked.texts, asked.tokens)
                if not columns:
                    measured = rig.costs()
                    all_costs = [Measured(measured, curve) for curve in curves.values()]
                columns.append(list(rig.cells(all_costs)))
        for name, costs, cells in zip(curves, all_costs, zip(*columns, strict=True), strict=True):
            ratios = [min(each[k] / each.fixed for each in cells) for k in (2, 3)]
            least.append(ratios)
            words = [kind, name, costs, *cells, *(f"{ratio:.3f}" for ratio in ratios)]
            print(f"| {' | '.join(map(str, words))} |", flush=True)
    cold, warm = map(min, zip(*least, strict=True))
    print(f"\nover the best fixed depth at least: cold {cold:.3f}, warm {warm:.3f}")


if __name__ == "__main__":
    main()
