"""How good is a draft? Acceptance rate, tokens per pass and speed, by kind of text.

    python scripts/measure_draft.py TARGET.gguf -d DRAFT.gguf [--forced] [--tokens 48]

One prompt of each kind of text. First, with five draft steps in every round: the acceptance rate
and the tokens per pass of the target. Nothing is timed; `--forced` measures nothing else.
Then the speed of the default, prompt lookup included, relative to plain decoding before and after
it. *cold*: only the costs of passes are known. *warm*: after another prompt of each kind. The time
of prompt processing in the target does not count, that in the draft does.

`--table NAME --step SHARE [--further SHARE]`: instead of the clock, a table gives the cost of
passes. The first guess of a round costs SHARE of a plain pass, and each further one as much, or the
share given with --further.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from measure_heads import TABLES, Measured

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.cost import Costs, FixedCosts, load_table
from dspark_gguf.engine.pair import Pair
from dspark_gguf.learned import Learned
from dspark_gguf.measure.bench.plan import choose_prompts
from dspark_gguf.records import Round
from dspark_gguf.schedule import StoppingRule, make_stopping_rule
from dspark_gguf.tally import Tally

PLAIN, DEFAULT = Speculation(mode="off"), Speculation(learn=False)
HEAD = ("text", "accepted", "tokens/pass", "cold, x plain", "tokens/pass", "warm, x plain",
        "tokens/pass")  # fmt: skip


class Bench:
    """Answers of one pair."""

    def __init__(self, pair: Pair, tokens: int, costs: Measured | None) -> None:
        self.pair, self.limits, self.costs = pair, Limits(max_tokens=tokens), costs
        self.sampling = Sampling(temperature=0, ignore_eos=True)
        self.rounds: list[Round] = []  # of the last answer, without the first, which has the prompt

    def answer(
        self, prompt: Sequence[int], how: Speculation, learned: Learned | None = None
    ) -> Tally:
        """One answer from empty caches."""
        decoder = Decoder.for_pair(self.pair, self.sampling, how, learned, schedule=self._schedule)
        decoder.reset()
        tally, self.rounds = Tally(), list(decoder.generate(prompt, self.limits))
        for round in self.rounds:
            tally.add(round)
        del self.rounds[0]
        return tally

    def _schedule(self, how: Speculation, costs: Costs | None, *sources: Any) -> StoppingRule:
        return make_stopping_rule(how, self.costs or costs, *sources)

    def compared(self, prompt: Sequence[int], known: Learned, repeats: int) -> list[str]:
        """Two cells of the default: its speed relative to plain decoding, and tokens per pass."""
        if self.costs:
            passes = self.answer(prompt, DEFAULT, known).tokens_per_round
            return [f"{self.costs.over_plain(self.rounds):.2f}", f"{passes:.2f}"]
        ratios, passes, before = list[float](), 0.0, speed(self.answer(prompt, PLAIN))
        for _ in range(repeats):
            tally = self.answer(prompt, DEFAULT, known)
            after = speed(self.answer(prompt, PLAIN))
            ratios.append(2 * speed(tally) / (before + after))
            passes, before = tally.tokens_per_round, after
        return [f"{median(ratios):.2f}", f"{passes:.2f}"]


def rig_costs(table: str, step: float, further: float) -> Measured:
    """Passes cost what the table says; reading a token costs the draft a tenth of a step."""
    rows = load_table(TABLES / f"{table}.json").target_seconds
    costs = FixedCosts(rows / rows[0], step + further * np.arange(len(rows) - 1))
    costs.catch_up_seconds = lambda tokens: step / 10 * tokens * (tokens > 2)  # type: ignore[method-assign]
    return Measured(costs)


def speed(tally: Tally) -> float:
    """Tokens per second, without the first token and the prompt."""
    return (tally.tokens - 1) / tally.decode_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("-d", "--draft", required=True)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--domains", default="")
    parser.add_argument("--forced", action="store_true")
    parser.add_argument("--table", help="cost table in tests/data/tables, instead of the clock")
    parser.add_argument("--step", type=float, default=0.2, help="draft step, in plain passes")
    parser.add_argument("--further", type=float, help="cost of a further step; default: the same")
    asked = parser.parse_args()
    further = asked.step if asked.further is None else asked.further
    domains = [name for name in asked.domains.split(",") if name]
    options = {
        "target_options": ModelOptions(n_ctx=2048),
        "draft_options": DraftOptions(n_ctx=2048),
    }
    head = HEAD[:3] if asked.forced else HEAD
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    with load_pair(asked.target, asked.draft, **options) as pair:
        pair.learned(DEFAULT)
        kind = pair.draft_cache().kind
        costs = rig_costs(asked.table, asked.step, further) if asked.table else None
        always = Speculation(mode="on", drafter=kind, draft_max=5, draft_min_prob=0.0, learn=False)
        bench, warm = Bench(pair, asked.tokens, costs), pair.copy_costs()
        first: dict[str, list[int]] = {}
        for prompt in choose_prompts(None, domains, 2):
            tokens = pair.template.encode(prompt.messages)
            if first.setdefault(prompt.domain, tokens) is not tokens and not asked.forced:
                bench.answer(tokens, DEFAULT, warm)
        for domain, tokens in first.items():
            forced = bench.answer(tokens, always)
            cells = [f"{forced.accepted_share:.0%}", f"{forced.tokens_per_round:.2f}"]
            for known in () if asked.forced else (pair.copy_costs(), warm):
                cells += bench.compared(tokens, known, asked.repeats)
            print(f"| {' | '.join([domain, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
