"""Many clients at once, a third of them leaving at random moments: what the server makes of it.

    python scripts/load_server.py [--seconds 600] [--clients 16] [--seed N] [-m MODEL -d DRAFT]

Every kind of request is first answered alone. Under load each finished answer must be the same; the
server must stay as large as it was, with as many threads, and `/health` must answer within 0.2 s.
Without -m, tiny models in F32, whose sums do not depend on what shares a pass; with real models,
answers may part where two tokens are nearly equal, and the count of those is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

EXACT = ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "-fad", "off", "-ctkd", "f32", "-ctvd", "f32"]
START = "from dspark_gguf.cli import main; main()"
SCHEMA = {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
#: Fields that differ from answer to answer.
CHANGING = re.compile(
    r'"(id|call_id|item_id|created|created_at|timings|usage|cached_tokens)": '
    r'("[^"]*"|\d+|\{[^{}]*(\{[^{}]*\})?[^{}]*\}),? ?'
)


def requests(rng: random.Random) -> list[tuple[str, dict]]:
    """Route and body of each kind, several times with other texts and seeds."""
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
    """What was seen."""

    done: int = 0
    left: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    slowest_health: float = 0.0
    sizes: list[float] = field(default_factory=list)


def plain(text: str) -> str:
    """An answer without what changes; streams without how they were cut."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    if not lines:
        return CHANGING.sub("", json.dumps(json.loads(text)))
    said: Counter[str] = Counter()
    out: dict[str, str] = {}
    for line in map(json.loads, lines):
        if line.get("error"):
            return json.dumps(line)
        for choice in line.get("choices", ()):
            delta = choice.get("delta", choice)
            name = str(choice["index"])
            text = delta.get("content") or delta.get("text") or ""
            out[name] = out.get(name, "") + text
            said[choice["finish_reason"]] += 1
        delta = line.get("delta")
        out["delta"] = out.get("delta", "") + (
            delta.get("text", "") if isinstance(delta, dict) else delta or ""
        )
    return json.dumps([out, sorted(k for k in said if k)])


async def client(
    http: httpx.AsyncClient,
    alone: list[str],
    made: list,
    rng: random.Random,
    found: Found,
    end: float,
) -> None:
    """Request after request until the end."""
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
        if answer.status_code != 200 or plain(answer.text) != alone[k]:
            found.different.append(f"{path} {str(body)[:200]}\n  {answer.text[:300]}")


async def watch(http: httpx.AsyncClient, process: psutil.Process, found: Found, end: float) -> None:
    """Health, and the size of the server, all the time."""
    while perf_counter() < end:
        started = perf_counter()
        answer = await http.get("/health")
        assert answer.status_code == 200
        found.slowest_health = max(found.slowest_health, perf_counter() - started)
        found.sizes.append(process.memory_info().rss / 1024**2)
        await asyncio.sleep(0.2)


async def load(url: str, process: psutil.Process, options: argparse.Namespace) -> Found:
    """All of it; raises where something is wrong."""
    rng, found = random.Random(options.seed), Found()
    made = requests(rng)
    limits = httpx.Limits(max_connections=options.clients)
    async with (
        httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http,
        httpx.AsyncClient(base_url=url, timeout=30) as aside,
    ):
        alone = []
        for path, body in made:
            answer = await http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            alone.append(plain(answer.text))
        threads = process.num_threads()
        end = perf_counter() + options.seconds
        await asyncio.gather(
            watch(aside, process, found, end),
            *(
                client(http, alone, made, random.Random(f"{options.seed} {k}"), found, end)
                for k in range(options.clients)
            ),
        )
        for _ in range(100):
            slots = (await aside.get("/slots")).json()
            if not any(slot["is_processing"] for slot in slots):
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"slots are still busy: {slots}")
        print(f"threads: {threads} before, {process.num_threads()} after", flush=True)
        print((await aside.get("/metrics")).text.split("# HELP dspark")[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
        command = [sys.executable, "-c", START, "serve", "--port", "0", "-t", "1"]
        server = subprocess.Popen(
            [*command, "--parallel", "8", *words], stderr=subprocess.PIPE, text=True
        )
        try:
            for line in server.stderr:
                print(line, end="")
                if at := re.search(r"http://\S+:\d+", line):
                    break
            found = asyncio.run(load(at[0], psutil.Process(server.pid), options))
        finally:
            server.terminate()
            server.wait(30)
    tenth = max(1, len(found.sizes) // 10)
    early, late = max(found.sizes[: 2 * tenth]), max(found.sizes[-tenth:])
    print(
        f"{found.done} answers, {found.left} clients left, statuses {dict(found.statuses)}, "
        f"{len(found.different)} differ, /health within {found.slowest_health:.3f} s, "
        f"{early:.0f} MiB early, {late:.0f} MiB late, exit code {server.returncode}"
    )
    for each in found.different[:5]:
        print(each)


if __name__ == "__main__":
    main()
