"""Copies from the conversation, live, by kind of text, beside llama-cpp-python's prompt lookup.

    python scripts/measure_lookup.py [-m TARGET.gguf] [-d DRAFT.gguf] [--tokens 128] [--repeats 3]

Greedy, the same file, threads and prompts (configs/prompts/copying.jsonl). For each prompt all
programs follow each other, each from an empty cache; the order is turned by one from prompt to
prompt. A figure is the median, over prompts and repeats, of tokens per second over those of our
plain decoding in the same turn; reading the prompt is not counted.

    plain    dspark-gguf, --spec off
    lookup   dspark-gguf without a draft model; nothing is known at first but the short profile
    cascade  dspark-gguf with the draft model too (with -d)
    peer     llama_cpp.Llama
    peer 10  llama_cpp.Llama with LlamaPromptLookupDecoding of 10 tokens: its default, for GPUs
    peer 2   the same with 2 tokens: what its documentation recommends for CPUs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median
from time import perf_counter

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from dspark_gguf import Decoder, Limits, Sampling, load_pair
from dspark_gguf.config import ModelOptions, Speculation
from dspark_gguf.engine.library import physical_cores
from dspark_gguf.engine.pair import Pair
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.paths import shipped

#: Tokens to answer, and the most of the answer: seconds a token.
Program = Callable[[Sequence[int], int], float]
CONTEXT = 2048
PLAIN = "plain"


def ours(pair: Pair, speculation: Speculation) -> Program:
    """A decoder of this project."""
    decoder = Decoder.for_pair(pair, Sampling(temperature=0), speculation)

    def run(prompt: Sequence[int], most: int) -> float:
        decoder.target.trim(0)
        decoder.drafter.trim(0)
        tally = decoder.answer(prompt, Limits(max_tokens=most)).tally
        return 1.0 / tally.tokens_per_second

    return run


def peer(path: str, guesses: int | None) -> Program:
    """llama-cpp-python's own loop; the first token, which ends the prompt's pass, is not timed."""
    draft = guesses and LlamaPromptLookupDecoding(num_pred_tokens=guesses)
    llama = llama_cpp.Llama(
        path,
        n_ctx=CONTEXT,
        n_threads=physical_cores(),
        draft_model=draft or None,
        verbose=False,
    )

    def run(prompt: Sequence[int], most: int) -> float:
        llama.reset()
        tokens = llama.generate(list(prompt), temp=0.0)
        end = llama.token_eos()
        next(tokens)
        started, count = perf_counter(), 0
        for token in islice(tokens, most - 1):
            count += 1
            if token == end:
                break
        return (perf_counter() - started) / count

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    small = ModelOptions(n_ctx=CONTEXT)
    with load_pair(options.model, options.draft, target_options=small) as pair:
        programs = {
            PLAIN: ours(pair, Speculation(mode="off")),
            "lookup": ours(pair, Speculation(learn=False, drafter="lookup")),
        }
        if options.draft:
            programs["cascade"] = ours(pair, Speculation(learn=False))
        if not options.no_peer:
            path = str(pair.target.path)
            programs |= {"peer": peer(path, None), "peer 10": peer(path, 10)}
            programs["peer 2"] = peer(path, 2)
        speeds: dict[str, dict[str, list[float]]] = {}
        names, turn = list(programs), 0
        for prompt in read_prompts(shipped("configs") / "prompts/copying.jsonl") * options.repeats:
            tokens = pair.template.encode(prompt.messages)
            taken = {name: programs[name](tokens, options.tokens)
                     for name in names[turn:] + names[:turn]}  # fmt: skip
            turn = (turn + 1) % len(names)
            for name, seconds in taken.items():
                ratios = speeds.setdefault(prompt.domain, {}).setdefault(name, [])
                ratios.append(taken[PLAIN] / seconds)
    print("| domain | " + " | ".join(names[1:]) + " |")
    print("|---" * len(names) + "|")
    for domain, ratios_of in speeds.items():
        cells = " | ".join(f"{median(ratios_of[name]):.2f}" for name in names[1:])
        print(f"| {domain} | {cells} |")


if __name__ == "__main__":
    main()
