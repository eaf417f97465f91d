"""`match` or draws from the rows, where a draft is a greedy chain? Tokens per pass of the target.

    python scripts/measure_block_acceptance.py [-m TARGET.gguf -d DRAFT.gguf]

A block draft with a Markov head chains its rows greedily. At a temperature above 0 there are two
lossless ways to use them: `match` emits the target's own sample and keeps the chain as long as it
is the same; `ratio` draws each token from its row's law, and leaves the chain with the first draw
that is another token. An ordinary draft stands in for the block here: its greedy chain of 6 tokens.
No clock and no draws: both expectations are sums over the laws of both models, at every fourth
position of texts that the target drew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.dist import Dist
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.sampling import Sampler

SAMPLINGS = {
    "temperature 0.8, defaults": Sampling(temperature=0.8, seed=1),
    "temperature 1, no truncation": Sampling(temperature=1.0, top_k=0, top_p=1, min_p=0, seed=1),
}
CHAIN, STEP = 6, 4


def laws_along(pair: Pair, sampler: Sampler, tokens: Sequence[int]) -> list[tuple[Dist, Dist, int]]:
    """The laws of target and draft along the draft's greedy chain, and its tokens."""
    draft = pair.draft_cache()
    assert draft is not None
    draft.keep(tokens[:-1])
    unseen, chain, theirs = list(tokens[draft.length :]), [], []
    for _ in range(CHAIN):
        row = draft.decode(unseen, 1)[0][: pair.vocabulary.n_vocab]
        theirs.append(sampler(row, (*tokens, *chain)))
        unseen = [int(row.argmax())]
        chain += unseen
    prefill(pair.target_cache, tokens[:-1])
    rows = pair.target_cache.decode([tokens[-1], *chain], 1 + len(chain))
    ours = [sampler(rows[k], (*tokens, *chain[:k])) for k in range(CHAIN)]
    return list(zip(ours, theirs, chain, strict=True))


def expected(steps: Sequence[tuple[Dist, Dist, int]]) -> tuple[float, float]:
    """Tokens of one round with `match`, and with draws."""
    match = ratio = kept = on_chain = 1.0
    for target, draft, token in steps:
        kept *= target.prob(token)
        match += kept
        common = set(map(int, target.ids)) & set(map(int, draft.ids))
        ratio += on_chain * sum(min(target.prob(k), draft.prob(k)) for k in common)
        on_chain *= min(target.prob(token), draft.prob(token))
    return match, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--tokens", type=int, default=48, help="of each text")
    options = parser.parse_args()
    print("| sampling | positions | match | draws |\n|---|---|---|---|")
    with load_pair(options.model, options.draft, target_options=ModelOptions(n_ctx=1024)) as pair:
        for name, sampling in SAMPLINGS.items():
            sampler = Sampler(sampling, pair.vocabulary.end_tokens)
            plain = Decoder.for_pair(pair, sampling, Speculation(mode="off"))
            found = []
            for prompt in read_prompts()[::4]:
                tokens = pair.template.encode(prompt.messages)
                text = plain.answer(tokens, Limits(max_tokens=options.tokens)).tokens
                for t in range(0, len(text), STEP):
                    found.append(expected(laws_along(pair, sampler, [*tokens, *text[:t]])))
            match, ratio = np.mean(found, axis=0)
            print(f"| {name} | {len(found)} | {match:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
