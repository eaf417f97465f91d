"""Does a long answer slow down? Time per token near token 200 and near token 4,000.

    python scripts/measure_long.py TARGET.gguf [--tokens 4100] [--temperature 0.8]

A streamed completion by `Llama` and by `DSparkLlama` (plain, and with prompt lookup), one after
another. Attention takes longer as the context grows, so the passes of the model are timed
separately: `passes` is their time per token, `around` is all other time per token, in milliseconds
(medians over 200 tokens). `grows` is the increase of `around`, relative to the whole time of a
token near 200. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp

from dspark_gguf import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine.llama import SafeLlama

#: Tokens before and after a position, and parts of these tokens of which the median is taken.
HALF, CHUNKS = 100, 5
EARLY = 200


def time_pass(llama: llama_cpp.Llama, tokens: int, temperature: float) -> list[tuple[float, float]]:
    """Seconds in passes and outside of them, for each token of a streamed answer."""
    inside = [0.0]
    decode: Callable[[Any], None] = llama._ctx.decode

    def counted(batch: object) -> None:
        started = perf_counter()
        decode(batch)
        inside[0] += perf_counter() - started

    llama._ctx.decode = counted
    ends = dict.fromkeys(
        (t for t in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(llama._model.vocab, t)),
        -1e6,
    )
    out, last = [], perf_counter()
    for _ in llama.create_completion(
        "Once upon a time", max_tokens=tokens, temperature=temperature, seed=7, stream=True,
        logit_bias=ends, stop=["never said by anybody"],
    ):  # fmt: skip
        now = perf_counter()
        out.append((inside[0], now - last - inside[0]))
        last, inside[0] = now, 0.0
    return out


def near(times: list[tuple[float, float]], place: int) -> tuple[float, float]:
    """Milliseconds per token in passes and outside of them, near token number `place`."""
    window = times[place - HALF : place + HALF]
    step = len(window) // CHUNKS
    chunks = [window[k : k + step] for k in range(0, len(window), step)]
    return tuple(  # type: ignore[return-value]
        median(1e3 * sum(one[which] for one in chunk) / len(chunk) for chunk in chunks)
        for which in (0, 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--tokens", type=int, default=4100)
    parser.add_argument("--temperature", type=float, default=0.8)
    asked = parser.parse_args()
    options = {"n_ctx": asked.tokens + 64, "verbose": False}
    rows = {}
    for name, make in {
        "Llama": lambda: SafeLlama(asked.target, **options),
        "DSparkLlama, off": lambda: DSparkLlama(
            asked.target, speculation=Speculation(mode="off"), **options
        ),
        "DSparkLlama, prompt lookup": lambda: DSparkLlama(asked.target, **options),
    }.items():
        llama = make()
        times = time_pass(llama, asked.tokens, asked.temperature)
        llama.close()
        early, late = near(times, EARLY), near(times, len(times) - HALF)
        rows[name] = {
            "passes": [early[0], late[0]],
            "around": [early[1], late[1]],
            "grows": (late[1] - early[1]) / sum(early),
        }
    place = asked.tokens - HALF
    print(f"| ms per token near | {EARLY}: passes | around | {place}: passes | around | grows |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        (early, late), (early_rest, late_rest) = row["passes"], row["around"]
        print(f"| {name} | {early:.2f} | {early_rest:.2f} | {late:.2f} | {late_rest:.2f} | "
              f"{row['grows']:+.0%} |")  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
