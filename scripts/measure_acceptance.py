#!/usr/bin/env python3
"""What the acceptance rules change: tokens per pass, and the distribution of the output.

Setup: the demo pair (Q8_0 target, Q2_K draft), eight prompts in four domains, fixed seeds, four
draft tokens per round regardless of confidence. Nothing is timed: the figures are the same on every
machine, up to floating-point ties. Prints a Markdown table and then one JSON line.

    tokens/round   tokens per pass of the target
    accepted       share of the verified draft tokens that were accepted
    moved          total variation distance between the distribution that a token was drawn from
                   and the target's, averaged over the verified positions; 0 is lossless
    log p          mean log-probability of the emitted tokens under the target (nats)
    rare           share of emitted tokens with a probability below 10 % under the target
    distinct-3     distinct trigrams of tokens among all trigrams: low is repetitive
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import click
import numpy as np

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.dist import Dist
from dspark_gguf.sampling import Row, Sampler
from dspark_gguf.verify import Rule

PROMPTS = (
    "What should I cook tonight with rice and eggs?",
    "Tell me about your favourite season and why you like it.",
    "Write a Python function that reverses a string.",
    "Write a SQL query that counts the orders of each customer.",
    "A train goes 60 km in 45 minutes. What is its speed? Explain each step.",
    "What is 17 times 24? Explain each step.",
    "Rewrite politely: Send me the report now, you are late again.",
    "Summarise in one sentence: The library opens at nine, closes at six, and is shut on Mondays.",
)
SAMPLINGS = {
    "temperature 0.8, defaults": Sampling(),
    "temperature 1, no truncation": Sampling(temperature=1, top_k=0, top_p=1, min_p=0),
}
RULES = ("plain", "rejection", "match", "typical", "threshold")
COLUMNS = ("tokens/round", "accepted", "moved", "log p", "rare", "distinct-3")


class Witness(Sampler):
    """A sampler that records the distribution of each token of an answer, in order."""

    def __init__(self, settings: Sampling, end_tokens: Sequence[int]) -> None:
        super().__init__(settings, end_tokens)
        self.dists: list[Dist] = []

    def __call__(
        self, row: Row, history: Sequence[int], drafted: Sequence[int] = (), grammar: object = None
    ) -> Dist:
        """The distribution, which is also recorded."""
        self.dists.append(super().__call__(row, history, drafted))
        return self.dists[-1]


class Watched:
    """An acceptance rule that records how far each position is from the target's distribution."""

    def __init__(self, rule: Rule, lossless: bool) -> None:
        self.rule, self.lossless = rule, lossless
        self.moved: list[float] = []

    def __call__(self, target: Dist, draft: Dist, token: int, rng: np.random.Generator) -> int:
        """The token that the rule emits."""
        emitted = self.rule(target, draft, token, rng)
        # The lossy rules are deterministic: an accepted token was emitted with probability 1.
        certain = emitted == token and not self.lossless
        self.moved.append(1.0 - target.prob(token) if certain else 0.0)
        return emitted


def measure(pair, rule: str, sampling: Sampling, tokens: int, seeds: int) -> dict[str, float]:  # noqa: ANN001
    """The figures of one rule over all prompts and seeds."""
    rounds = drafted = accepted = 0
    logs, moved, triples = [], [], []
    for prompt in PROMPTS:
        ids = pair.template.encode([{"role": "user", "content": prompt}])
        for seed in range(seeds):
            settings = sampling.model_copy(update={"seed": seed})
            answer, dists, watched = run(pair, ids, rule, settings, tokens)
            rounds += answer.tally.rounds
            drafted += answer.tally.drafted
            accepted += answer.tally.accepted
            pairs = zip(dists, answer.tokens, strict=False)
            # A lossy rule may emit a token of probability 0: counted as 1e-9.
            logs += [math.log(max(dist.prob(token), 1e-9)) for dist, token in pairs]
            moved += watched.moved
            triples.append(list(zip(*(answer.tokens[k:] for k in range(3)), strict=False)))
    probabilities = np.exp(logs)
    figures = (
        len(logs) / rounds,
        accepted / drafted if drafted else 0.0,
        float(np.mean(moved)) if moved else 0.0,
        float(np.mean(logs)),
        float((probabilities < 0.1).mean()),
        sum(len(set(t)) for t in triples) / max(1, sum(map(len, triples))),
    )
    return dict(zip(COLUMNS, figures, strict=True))


def run(pair, ids: list[int], rule: str, sampling: Sampling, tokens: int):  # noqa: ANN001, ANN201
    """One answer, the distributions of its tokens, and the rule with its records."""
    plain = rule == "plain"
    speculation = Speculation(
        mode="off" if plain else "on",
        acceptance="rejection" if plain else rule,
        draft_max=4,
        draft_min_prob=0,
    )
    decoder = Decoder.for_pair(pair, sampling, speculation)
    decoder.sampler = witness = Witness(sampling, pair.vocabulary.end_tokens)
    decoder.rule = watched = Watched(decoder.rule, speculation.lossless)
    return decoder.answer(ids, Limits(max_tokens=tokens)), witness.dists, watched


def rows(tokens: int, seeds: int) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The name of the sampling, the rule, and its figures."""
    with load_pair() as pair:
        for name, sampling in SAMPLINGS.items():
            for rule in RULES:
                yield name, rule, measure(pair, rule, sampling, tokens, seeds)


@click.command()
@click.option("--tokens", default=80, show_default=True, help="Tokens of each answer.")
@click.option("--seeds", default=2, show_default=True, help="Answers to each prompt.")
def main(tokens: int, seeds: int) -> None:
    """Print what each acceptance rule changes."""
    print(f"| sampling | rule | {' | '.join(COLUMNS)} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    record: dict[str, dict[str, dict[str, float]]] = {}
    for name, rule, figures in rows(tokens, seeds):
        record.setdefault(name, {})[rule] = {k: round(v, 4) for k, v in figures.items()}
        cells = " | ".join(f"{value:.2f}" for value in figures.values())
        print(f"| {name} | {rule} | {cells} |", flush=True)
    print(json.dumps({"tokens": tokens, "seeds": seeds, "prompts": len(PROMPTS), **record}))


if __name__ == "__main__":
    main()
