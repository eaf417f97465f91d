"""Load test of the server: many clients at once, a third of whose requests are abandoned.

    python scripts/load_server.py [--seconds 600] [--clients 16] [--seed N] [-m MODEL -d DRAFT]

First, every request is answered alone. Under load, each finished answer must be the same. The
script prints the server's memory and threads, which should not grow, and the response times of
`/health`, which another process requests. The packages openai, anthropic, langchain-openai and llm
send requests too if they are installed.

Without -m, the models are tiny and in F32, where the results of a pass do not depend on what else
is in the batch. With real models, answers may diverge where two tokens are nearly equal. So each
answer that differs is decoded again, alone and without drafts, and the script prints how close the
two tokens were. Exit code 1: an answer differs by more than rounding, or the server failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.near_ties import near_ties
from scripts.our_server import our_server

EXACT = ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "-fad", "off", "-ctkd", "f32", "-ctvd", "f32"]
SCHEMA = {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"name": "add", "description": "Adds.", "parameters": SCHEMA}


def requests(rng: random.Random) -> list[tuple[str, dict]]:
    """Route and body: each kind of request, with several texts and seeds."""
    made: list[tuple[str, dict]] = []
    for k in range(4):
        words = " ".join(rng.choice(["hello", "river", "fox", "seven"]) for _ in range(10 + 60 * k))
        messages = [{"role": "user", "content": words}]
        chat = {"messages": messages, "seed": k, "max_tokens": 30 + 20 * k}
        function = {"type": "function", "function": TOOL}
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        short = {"model": "x", "seed": k, "max_tokens": 40}
        made += [
            ("/v1/chat/completions", {**chat, "stream": True}),
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "n": 2, "temperature": 1.0}),
            ("/v1/chat/completions", {**chat, "temperature": 0, "stream": True}),
            ("/v1/chat/completions", {**chat, "response_format": format}),
            ("/v1/chat/completions", {**chat, "tools": [function], "tool_choice": "required"}),
            ("/v1/completions", {**short, "prompt": words, "stream": True, "echo": True}),
            ("/v1/messages", {**short, "messages": messages, "stream": True}),
            ("/v1/responses", {**short, "input": words, "max_output_tokens": 40}),
        ]
    return made


@dataclass
class Found:
    """The results; `different`: index of each request with another answer, and its texts."""

    done: int = 0
    left: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    different: list[tuple[int, list[str]]] = field(default_factory=list)


def texts(answer: str) -> list[str]:
    """The text of each choice, with the arguments of its calls; chunks of a stream are joined."""
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: {")]
    said: dict[int, str] = {}
    for record in map(json.loads, lines or [answer]):
        if record.get("error") or record.get("type") == "error":
            return [json.dumps(record)]
        for choice in record.get("choices", ()):
            message = choice.get("delta") or choice.get("message") or choice
            said[choice["index"]] = said.get(choice["index"], "") + _said(message)
        if isinstance(delta := record.get("delta"), str | dict):
            said[0] = said.get(0, "") + (delta if isinstance(delta, str) else _said(delta))
        for item in [] if lines else [*record.get("content", ()), *record.get("output", ())]:
            said[0] = said.get(0, "") + "".join(map(_said, item.get("content") or [item]))
    return [said[k] for k in sorted(said)]


def _said(message: dict) -> str:
    calls = (each["function"]["arguments"] for each in message.get("tool_calls", ()))
    return (message.get("content") or message.get("text") or "") + "".join(calls)


def packages(url: str, body: dict) -> dict[str, Callable[[], str]]:
    """The client packages that are installed: each function returns the answer to the same chat."""
    messages, most, seed = body["messages"], body["max_tokens"], body["seed"]
    base, options = f"{url}/v1", {"api_key": "x", "max_retries": 0, "timeout": 300}

    def by_openai() -> str:
        from openai import OpenAI

        with OpenAI(base_url=base, **options) as one:
            stream = one.chat.completions.create(
                model="x", messages=messages, max_tokens=most, seed=seed, stream=True
            )
            return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)

    def by_anthropic() -> str:
        from anthropic import Anthropic

        with (
            Anthropic(base_url=url, **options) as one,
            one.messages.stream(
                model="x", messages=messages, max_tokens=most, extra_body={"seed": seed}
            ) as stream,
        ):
            return "".join(stream.text_stream)

    def by_langchain() -> str:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model="x", base_url=base, max_tokens=most, seed=seed, **options)
        return model.invoke(messages[0]["content"]).content

    def by_llm() -> str:
        from llm.default_plugins.openai_models import Chat

        model = Chat("x", model_name="x", api_base=base)
        return model.prompt(messages[0]["content"], key="x", max_tokens=most, seed=seed).text()

    made = {
        "openai": by_openai, "anthropic": by_anthropic, "langchain_openai": by_langchain,
        "llm": by_llm,
    }  # fmt: skip
    return {name: ask for name, ask in made.items() if find_spec(name)}


async def package(
    ask: Callable[[], str], alone: list[list[str]], k: int, found: Found, end: float
) -> None:
    """Send the request of one client package again and again until the end."""
    while perf_counter() < end:
        said = [await asyncio.to_thread(ask)]
        found.done += 1
        if said != alone[k]:
            found.different.append((k, said))


async def client(
    http: httpx.AsyncClient,
    alone: list[list[str]],
    made: list,
    rng: random.Random,
    found: Found,
    end: float,
) -> None:
    """Send random requests, one after another, until the end."""
    while perf_counter() < end:
        k = rng.randrange(len(made))
        path, body = made[k]
        leaves = rng.random() < 1 / 3
        try:
            patience = rng.expovariate(2.0) if leaves else 120
            answer = await asyncio.wait_for(http.post(path, json=body), patience)
        except asyncio.TimeoutError:
            found.left += 1
            continue
        found.statuses[answer.status_code] += 1
        if answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["retry-after"]) * rng.random())
            continue
        found.done += 1
        if answer.status_code != 200 or texts(answer.text) != alone[k]:
            found.different.append((k, texts(answer.text)))


def watch(url: str, pid: int, seconds: float) -> tuple[list[float], list[float]]:
    """Run in a separate process: the seconds of each `/health` request, and the server's MiB."""
    process, end = psutil.Process(pid), perf_counter() + seconds
    taken, sizes = [], []
    with httpx.Client(base_url=url, timeout=30) as http:
        while perf_counter() < end:
            started = perf_counter()
            assert http.get("/health").status_code == 200
            taken.append(perf_counter() - started)
            sizes.append(process.memory_info().rss / 1024**2)
            sleep(0.1)
    return taken, sizes


async def load(url: str, pid: int, options: argparse.Namespace) -> int:
    """Run the load test. Returns the number of answers that differ and are not near-ties."""
    rng, found, process = random.Random(options.seed), Found(), psutil.Process(pid)
    made = requests(rng)
    limits = httpx.Limits(max_connections=options.clients)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            alone = []
            for path, body in made:
                answer = await http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                alone.append(texts(answer.text))
            threads, end = process.num_threads(), perf_counter() + options.seconds
            seen = pool.submit(watch, url, pid, options.seconds)
            await asyncio.gather(
                *(
                    client(http, alone, made, random.Random(f"{options.seed} {k}"), found, end)
                    for k in range(options.clients)
                ),
                *(package(ask, alone, 1, found, end) for ask in packages(url, made[1][1]).values()),
            )
            for _ in range(100):
                slots = (await http.get("/slots")).json()
                if not any(slot["is_processing"] for slot in slots):
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError(f"slots are still busy: {slots}")
            print((await http.get("/metrics")).text.split("# HELP dspark")[1])
        taken, sizes = seen.result()
    taken.sort()
    tenth = max(1, len(sizes) // 10)
    print(
        f"{found.done} answers, {found.left} clients left, statuses {dict(found.statuses)}, "
        f"{len(found.different)} differ; /health: median {median(taken):.3f} s, 99 of 100 within "
        f"{taken[int(len(taken) * 0.99)]:.3f} s, all within {taken[-1]:.3f} s; "
        f"{max(sizes[: 2 * tenth]):.0f} MiB early, {max(sizes[-tenth:]):.0f} MiB late; "
        f"threads: {threads} before, {process.num_threads()} after",
        flush=True,
    )
    if not found.different or options.model is None:
        return len(found.different)
    return near_ties(options.model, made, alone, found.different)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-m", "--model")
    parser.add_argument("-d", "--draft")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", options.model, *(["-d", options.draft] if options.draft else [])]
        if options.model is None:
            from tests.tiny_gguf import Tiny, write_llama

            tiny = Tiny(context=4096)
            files = [Path(folder, name) for name in ("target.gguf", "draft.gguf")]
            write_llama(files[0], tiny)
            write_llama(files[1], tiny.but(noise=0.05))
            words = ["-m", str(files[0]), "-d", str(files[1]), "-c", "4096", *EXACT]
            words += ["--spec", "on", "--draft-max", "3", "--draft-p-min", "0", "--no-learn"]
            words += ["--repeat-penalty", "1.3"]
        with our_server(["-t", "1", "--parallel", "8", *words]) as (url, server):
            wrong = asyncio.run(load(url, server.pid, options))
    print(f"{wrong} differ by more than rounding, exit code of the server {server.returncode}")
    sys.exit(1 if wrong or server.returncode else 0)


if __name__ == "__main__":
    main()
