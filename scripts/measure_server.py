"""Tokens per second of `dspark-gguf serve`, `chat` and `llama-server`, for 1, 2, 4 and 8 clients.

    python scripts/measure_server.py [-m MODEL -d DRAFT] [--clients 1,2,4,8] [--repeats 3]
        [--server PATH/llama-server]

For each number of clients, all programs take turns, so that other work on the machine affects all
of them. Each figure is the median of the repeats. After the speeds come ratios: above 1, `serve` is
faster. `chat` is one conversation in this process, without HTTP. `llama-server` is taken from the
PATH unless --server names it; if there is none, only the others are measured.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, load_pair
from dspark_gguf.config import DraftOptions
from dspark_gguf.measure.bench.peers import _draft_words, _model_words, serving
from scripts.our_server import our_server

PROMPTS = [
    "Write a short story about a fox.", "Explain how a bicycle stays upright.",
    "Write a Python function that sorts words by length.", "List ten facts about the sea.",
    "Describe a market in the morning.", "Summarise how bread is made.",
    "Write a letter to a friend about a journey.", "Explain what a matrix is.",
]  # fmt: skip
#: Tokens of context for a prompt and its answer, in each slot of llama-server.
ROOM = 1024
#: Seconds after each turn: our server measures passes again two seconds after an answer.
_PAUSE = 3.0
_CONTENT = re.compile(rb'"content": ?"((?:[^"\\]|\\.)+)"')
_PREDICTED = re.compile(rb'"predicted_n": ?(\d+)')


def over_http(url: str, count: int, tokens: int) -> float:
    """Tokens per second of `count` greedy streams at once, prompts included, until one has ended.

    Of each other stream, the part of its text that it had by then counts. After that, fewer streams
    share passes that take nearly as long, so the figure would depend on how evenly the streams end.
    The client is a simple one, because httpx took 0.5 ms of CPU time per token from the server.
    """
    place = urlsplit(url).netloc

    def one(k: int) -> tuple[int, list[tuple[float, int]]]:
        """The number of tokens of a stream, and the bytes of text that it had at each time."""
        body = {
            "messages": [{"role": "user", "content": PROMPTS[k % len(PROMPTS)]}],
            "max_tokens": tokens, "stream": True, "temperature": 0.0, "ignore_eos": True,
        }  # fmt: skip
        total, length, had = 0, 0, list[tuple[float, int]]()
        with closing(HTTPConnection(place, timeout=600)) as connection:
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), kind)
            for line in connection.getresponse():
                if piece := _CONTENT.search(line):
                    length += len(piece[1])
                    had.append((perf_counter(), length))
                elif found := _PREDICTED.search(line):
                    total = int(found[1])
        return total, had

    started = perf_counter()
    with ThreadPoolExecutor(count) as pool:
        streams = list(pool.map(one, range(count)))
    end = min(had[-1][0] for _, had in streams)
    done = [
        total * max((n for at, n in had if at <= end), default=0) / had[-1][1]
        for total, had in streams
    ]
    return sum(done) / (end - started)


def alone(decoder: Decoder, tokens: int) -> float:
    """Tokens per second of the first prompt, answered as in `chat`."""
    started = perf_counter()
    answer = decoder.answer([{"role": "user", "content": PROMPTS[0]}], Limits(max_tokens=tokens))
    return len(answer.tokens) / (perf_counter() - started)


def measure(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median speed of each, in turns; the first turn is a warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, each in work.items():
            speed = each()
            speeds[name] += [speed] if turn else []
            sleep(_PAUSE)
    return {name: median(each) for name, each in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--server", default=shutil.which("llama-server"))
    options = parser.parse_args()
    counts = [int(each) for each in options.clients.split(",")]
    threads = {
        "target_options": ModelOptions(threads=options.threads),
        "draft_options": DraftOptions(threads=options.threads),
    }
    models = (options.model, options.draft)
    table: dict[int, dict[str, float]] = {}
    with ExitStack() as stack:
        one = stack.enter_context(load_pair(*models, **threads))
        draft = one.draft_cache()
        decoder = Decoder.for_pair(one, Sampling(temperature=0.0, ignore_eos=True))
        paths = [str(one.target.path), *([str(draft.model.path)] if draft else [])]
        files = [word for pair in zip(("-m", "-d"), paths, strict=False) for word in pair]
        own = [*files, "--parallel", str(max(counts))]
        own += ["-t", str(options.threads)] if options.threads else []
        url, _ = stack.enter_context(our_server(own))
        for count in counts:
            work = {"serve": lambda n=count: over_http(url, n, options.tokens)}
            if count == 1:
                work["chat"] = lambda: alone(decoder, options.tokens)
            with ExitStack() as others:
                words = _model_words(one, ROOM * count) if options.server else []
                drafts = _draft_words(one, options.server) if options.server else []
                for name, more in (("llama-server", []), ("its draft", drafts)):
                    if words and (more or name == "llama-server"):
                        command = (options.server, [*words, *more], count)
                        there = others.enter_context(serving(*command))
                        work[name] = lambda at=there, n=count: over_http(at, n, options.tokens)
                table[count] = found = measure(work, options.repeats)
            cells = [f"{name} {speed:.1f}" for name, speed in found.items()]
            cells += [f"{found['serve'] / x:.3f} x {name}" for name, x in found.items()][1:]
            print(f"{count} clients, tokens/s: {', '.join(cells)}", flush=True)
    print(json.dumps({"tokens_per_second": table}))


if __name__ == "__main__":
    main()
