"""What lines of the machine presets do here: the draft's cache type, the pieces of a prompt.

    python scripts/measure_presets.py [-m TARGET.gguf -d DRAFT.gguf] [--tokens 48]

Acceptance knows no clock: greedy answers to one prompt of each domain, four draft tokens a round
whatever the draft's confidence. Prompts are read in turn with each --ubatch-size; a figure is the
median of the ratios to the default's time in the same turn.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from statistics import median
from time import perf_counter

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, load_pair
from dspark_gguf.config import DraftOptions, Speculation
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.records import Tally

CACHES = {
    "f16": {},
    "q8_0 keys": {"cache_type_k": "q8_0"},
    "q8_0": {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
}
UBATCHES = (512, 256, 128, 64)
PROMPT, TURNS = 512, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    print("| draft's cache | accepted | draft tokens | MiB for 8192 tokens |\n|---|---|---|---|")
    for name, changes in CACHES.items():
        tally, mib = accepted(options, DraftOptions(**changes))
        share = tally.accepted / tally.drafted
        print(f"| {name} | {share:.3f} | {tally.drafted} | {mib:.0f} |", flush=True)
    print("\n| --ubatch-size | time of a prompt |\n|---|---|")
    for size, ratio in prompt_times(options.model).items():
        print(f"| {size} | {ratio:.2f} |")


def accepted(options: argparse.Namespace, draft_options: DraftOptions) -> tuple[Tally, float]:
    """What became of the guesses of a draft that is loaded like this, and MiB of its cache."""
    total = Tally()
    by_hand = Speculation(mode="on", drafter="model", draft_max=4, draft_min_prob=0.0)
    with load_pair(options.model, options.draft, draft_options=draft_options) as pair:
        decoder = Decoder.for_pair(pair, Sampling(temperature=0), by_hand)
        for _, prompts in groupby(read_prompts(), key=lambda prompt: prompt.domain):
            tokens = pair.template.encode(next(prompts).messages)
            total.merge(decoder.answer(tokens, Limits(max_tokens=options.tokens)).tally)
        cache = pair.draft_cache()
        assert cache is not None
        return total, cache.cache_bytes / 1024**2


def prompt_times(model: str | None) -> dict[int, float]:
    """--ubatch-size -> time to read a prompt, over the default's."""
    pairs = {
        size: load_pair(model, target_options=ModelOptions(n_ctx=2 * PROMPT, n_ubatch=size))
        for size in UBATCHES
    }
    taken: dict[int, list[float]] = {size: [] for size in pairs}
    for _ in range(TURNS):
        for size, pair in pairs.items():
            ids = [(7 + 37 * k) % pair.vocabulary.n_tokens for k in range(PROMPT)]
            pair.target_cache.trim(0)
            started = perf_counter()
            pair.target_cache.advance(ids, 1)
            taken[size].append(perf_counter() - started)
    base = taken[UBATCHES[0]]
    return {
        size: median(one / other for one, other in zip(times, base, strict=True))
        for size, times in taken.items()
    }


if __name__ == "__main__":
    main()
