"""Tokens a second over HTTP: one client beside the same conversation without a server, then many.

    python scripts/measure_server.py [-m MODEL -d DRAFT] [--clients 1,2,4,8] [--repeats 3]

Everything runs in one process on one pair, in turns, so that what else the machine does disturbs
all alike. Each figure is the median over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dspark_gguf import Limits, ModelOptions, Sampling, load_pair
from dspark_gguf.config import DraftOptions, Settings
from dspark_gguf.noise import Noise
from dspark_gguf.serve.app import make_server
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.turns import Turn

PROMPTS = [
    "Write a short story about a fox.", "Explain how a bicycle stays upright.",
    "Write a Python function that sorts words by length.", "List ten facts about the sea.",
    "Describe a market in the morning.", "Summarise how bread is made.",
    "Write a letter to a friend about a journey.", "Explain what a matrix is.",
]  # fmt: skip


def over_http(url: str, count: int, tokens: int, seed: int) -> float:
    """Tokens a second of so many streams at once."""

    def one(k: int) -> int:
        body = {
            "messages": [{"role": "user", "content": PROMPTS[k % len(PROMPTS)]}],
            "max_tokens": tokens, "seed": seed, "stream": True, "temperature": 0.0,
        }  # fmt: skip
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as answer:
            lines = [line for line in answer.iter_lines() if '"predicted_n": ' in line]
        return int(lines[-1].split('"predicted_n": ')[1].split(",")[0])

    started = perf_counter()
    with ThreadPoolExecutor(count) as pool:
        total = sum(pool.map(one, range(count)))
    return total / (perf_counter() - started)


def without(engine: Engine, tokens: int) -> float:
    """The first prompt given to the engine itself."""
    prompt = engine.pair.template.encode([{"role": "user", "content": PROMPTS[0]}])
    over = threading.Event()
    turn = Turn(prompt, Sampling(temperature=0.0), Limits(max_tokens=tokens), Noise.of(1))
    turn.post = lambda news: over.set() if news.is_over else None
    started = perf_counter()
    engine.submit([turn])
    over.wait()
    return len(turn.answer.tokens) / (perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    counts = [int(each) for each in options.clients.split(",")]
    with load_pair(
        options.model, options.draft, conversations=max(counts),
        target_options=ModelOptions(threads=options.threads),
        draft_options=DraftOptions(threads=options.threads),
    ) as pair:  # fmt: skip
        engine = Engine(pair, parallel=max(counts))
        service, ready, at = Service(pair, Settings(), engine), threading.Event(), []
        server = make_server(service, port=0, ready=lambda url: (at.append(url), ready.set()))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        ready.wait()
        found: dict[object, list[float]] = {}
        for seed in range(options.repeats + 1):
            speeds = {"no server": without(engine, options.tokens)}
            speeds |= {n: over_http(at[0], n, options.tokens, seed) for n in counts}
            for name, speed in speeds.items() if seed else ():  # the first one warms up
                found.setdefault(name, []).append(speed)
        server.should_exit = True
        thread.join()
        engine.close()
        service.close()
    for name, speeds in found.items():
        print(f"{name}: {statistics.median(speeds):.1f} tokens/s {[round(x, 1) for x in speeds]}")


if __name__ == "__main__":
    main()
