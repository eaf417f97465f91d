"""Does speculation pay in a long context? Speed relative to plain decoding, by context length.

    python scripts/measure_depths.py TARGET.gguf [-d DRAFT.gguf] [--depths 2048,8192] [--repeats 3]
        [-fa off]

The context is source code of Python's standard library, followed by one of three tasks: explain it,
continue it, or repeat a part of it. Plain decoding and the default take turns. The default starts
cold each time: its costs were measured at the start of a context, it has no calibration, and its
draft has not read the context; the time that the draft spends on reading counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from statistics import median

from dspark_gguf import Answer, Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.pair import Pair

TASKS = {
    "new text": "Explain in a few sentences what this code is good for.",
    "more code": "Write the next class of this file.",
    "copy": "Repeat this function with `width` renamed to `columns`:\n\n"
    + inspect.getsource(argparse.HelpFormatter._split_lines)
    + inspect.getsource(argparse.HelpFormatter._fill_text),
}
#: Tokens reserved for a task and its answer.
ROOM = 512


def prompts(pair: Pair, depth: int) -> Iterator[tuple[str, list[int]]]:
    """The name of each task, and its prompt of about `depth` tokens."""
    modules = (argparse, inspect, typing, dataclasses)
    code = "\n".join(inspect.getsource(module) for module in modules)
    tokens = pair.vocabulary.tokenize(code, special=False)[: depth - ROOM]
    for name, task in TASKS.items():
        yield name, [*tokens, *pair.vocabulary.tokenize("\n\n", add_bos=False),
                     *pair.template.ids([{"role": "user", "content": task}])]  # fmt: skip


def speed(answer: Answer) -> float:
    """Tokens per second, without the first token and the prompt."""
    return (len(answer.tokens) - 1) / answer.tally.decode_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("-d", "--draft")
    parser.add_argument("--depths", default="2048,8192")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("-fa", "--flash-attn", choices=("auto", "on", "off"), default="auto")
    asked = parser.parse_args()
    depths = [int(each) for each in asked.depths.split(",")]
    sampling = Sampling(temperature=0, ignore_eos=True)
    target = ModelOptions(n_ctx=max(depths) + ROOM, flash_attn=asked.flash_attn)
    options = {"target_options": target}
    if asked.draft:
        options["draft_options"] = DraftOptions(n_ctx=max(depths) + ROOM)
    print("| depth | task | plain tok/s | x plain | tokens/pass | drafted |")
    print("|---|---|---|---|---|---|")
    with load_pair(asked.target, asked.draft, **options) as pair:
        unlearned = Speculation(learn=False)
        pair.learned(unlearned)
        draft = pair.draft_cache()
        for depth in depths:
            for name, prompt in prompts(pair, depth):
                plain = Decoder.for_pair(pair, sampling, Speculation(mode="off"))
                plain.answer(prompt, Limits(max_tokens=1))
                ratios, speeds, answers = [], [], []
                for _ in range(asked.repeats):
                    before = plain.answer(prompt, Limits(max_tokens=asked.tokens))
                    if draft is not None:
                        draft.trim(0)
                    fast = Decoder.for_pair(pair, sampling, unlearned, pair.copy_costs())
                    after = fast.answer(prompt, Limits(max_tokens=asked.tokens))
                    speeds.append(speed(before))
                    ratios.append(speed(after) / speeds[-1])
                    answers.append(after)
                tally = answers[-1].tally
                print(
                    f"| {depth} | {name} | {median(speeds):.1f} | {median(ratios):.2f} "
                    f"({min(ratios):.2f}-{max(ratios):.2f}) | {tally.tokens_per_round:.2f} "
                    f"| {tally.drafted} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
