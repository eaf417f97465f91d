"""Speed over plain decoding by kind of text, live: every setting in turn on every prompt.

    python scripts/measure_speed.py [-m TARGET.gguf -d DRAFT.gguf] [--tokens 64] [--brief]

Greedy. For each prompt all settings follow each other, from empty caches; the order is turned by
one from prompt to prompt. A figure is the median, over prompts and repeats, of the ratio to plain
decoding of the same prompt in the same turn. `optimal` begins with nothing learned but the short
profile. The last lines are the controller's share of the wall time, and its milliseconds a round.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from statistics import median

from dspark_gguf import Decoder, Limits, Sampling, load_pair
from dspark_gguf.config import Speculation
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.records import Tally

PLAIN, DEFAULT, OPTIMAL = "plain", "3 always", "optimal"
STATIC = {
    "1 always": Speculation(mode="on", draft_max=1, draft_min_prob=0.0),
    DEFAULT: Speculation(mode="on", draft_max=3, draft_min_prob=0.0),
    "3 at 0.5": Speculation(mode="on", draft_max=3, draft_min_prob=0.5),
    "8 at 0.5": Speculation(mode="on", draft_max=8, draft_min_prob=0.5),
    "3 at 0.9": Speculation(mode="on", draft_max=3, draft_min_prob=0.9),
    "12 at 0.8": Speculation(mode="on", draft_max=12, draft_min_prob=0.8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=2, help="of each domain")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--domains", nargs="*")
    parser.add_argument("--brief", action="store_true", help="of the static settings, 3 always")
    options = parser.parse_args()
    static = {DEFAULT: STATIC[DEFAULT]} if options.brief else STATIC
    settings = {PLAIN: Speculation(mode="off"), **static, OPTIMAL: Speculation(learn=False)}
    ratios: dict[tuple[str, str], list[float]] = {}
    total = {name: Tally() for name in settings}
    with load_pair(options.model, options.draft) as pair:
        decoders = {
            name: Decoder.for_pair(pair, Sampling(temperature=0), speculation)
            for name, speculation in settings.items()
        }
        names, turn = list(settings), 0
        for domain, prompts in groupby(read_prompts(), key=lambda prompt: prompt.domain):
            if options.domains and domain not in options.domains:
                continue
            for prompt in list(prompts)[: options.prompts] * options.repeats:
                tokens = pair.template.encode(prompt.messages)
                speeds = {}
                for name in names[turn:] + names[:turn]:
                    decoders[name].target.trim(0)
                    decoders[name].drafter.trim(0)
                    tally = decoders[name].answer(tokens, Limits(max_tokens=options.tokens)).tally
                    speeds[name] = tally.tokens_per_second
                    total[name].merge(tally)
                turn = (turn + 1) % len(names)
                for name, speed in speeds.items():
                    ratios.setdefault((domain, name), []).append(speed / speeds[PLAIN])
    print("| domain | 3 always | best static | which | optimal |\n|---|---|---|---|---|")
    for domain in dict.fromkeys(domain for domain, _ in ratios):
        figures = {name: median(ratios[domain, name]) for name in settings}
        best = max(static, key=figures.__getitem__)
        print(
            f"| {domain} | {figures[DEFAULT]:.2f} | {figures[best]:.2f} | {best} | "
            f"{figures[OPTIMAL]:.2f} |"
        )
    for name, tally in total.items():
        wall = tally.seconds - tally.prefill_seconds
        speed = tally.tokens_per_second / total[PLAIN].tokens_per_second
        print(
            f"{name:>10}: x{speed:.3f} in all, {tally.tokens_per_round:.2f} tokens/round, "
            f"off {tally.plain_rounds / tally.rounds:.0%}, "
            f"controller {tally.controller_seconds / wall:.1%}, "
            f"{1e3 * tally.controller_seconds / tally.rounds:.2f} ms a round"
        )


if __name__ == "__main__":
    main()
