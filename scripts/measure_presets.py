"""What a smaller cache of the draft does to its guesses: lines of the presets for small machines.

    python scripts/measure_presets.py [-m TARGET.gguf -d DRAFT.gguf] [--tokens 48]

Greedy answers to one prompt of each domain, four draft tokens a round whatever the draft's
confidence. No clock is involved.
"""

from __future__ import annotations

import argparse
from itertools import groupby

from dspark_gguf import Decoder, Limits, Sampling, load_pair
from dspark_gguf.config import DraftOptions, Speculation
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.records import Tally

CACHES = {
    "f16": DraftOptions(),
    "q8_0": DraftOptions(cache_type_k="q8_0", cache_type_v="q8_0"),
    "q4_0": DraftOptions(cache_type_k="q4_0", cache_type_v="q4_0"),
}
BY_HAND = Speculation(mode="on", drafter="model", draft_max=4, draft_min_prob=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    print("| draft's cache | MiB for 8192 tokens | accepted | of draft tokens |\n|---|---|---|---|")
    for name, draft_options in CACHES.items():
        total = Tally()
        with load_pair(options.model, options.draft, draft_options=draft_options) as pair:
            decoder = Decoder.for_pair(pair, Sampling(temperature=0), BY_HAND)
            for _, prompts in groupby(read_prompts(), key=lambda prompt: prompt.domain):
                tokens = pair.template.encode(next(prompts).messages)
                total.merge(decoder.answer(tokens, Limits(max_tokens=options.tokens)).tally)
            cache = pair.draft_cache()
            assert cache is not None
            mib = cache.cache_bytes / 1024**2
        share = total.accepted / total.drafted
        print(f"| {name} | {mib:.0f} | {share:.3f} | {total.drafted} |", flush=True)


if __name__ == "__main__":
    main()
