"""What others make of the same files and prompts: llama-cpp-python, and llama.cpp's server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from dspark_gguf.config import Sampling
from dspark_gguf.engine.library import physical_cores
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError
from dspark_gguf.measure.bench.llama_peer import LlamaPeer
from dspark_gguf.measure.bench.turns import Program, Task
from dspark_gguf.tally import Tally

SERVER = "llama-server"
#: Draft tokens of llama-cpp-python's prompt lookup: its default, and its advice for CPUs.
_GUESSES = {
    0: ("llama-py", "llama-cpp-python's Llama, plain"),
    10: ("py-lookup-10", "llama-cpp-python's prompt lookup of 10"),
    2: ("py-lookup-2", "llama-cpp-python's prompt lookup of 2"),
}
_START_SECONDS, _ANSWER_SECONDS = 300.0, 600.0
#: Settings that the server knows under the same names.
_SAMPLING = {
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
    "frequency_penalty", "presence_penalty", "seed",
}  # fmt: skip


@dataclass
class InProcess:
    """llama-cpp-python's own ``Llama``."""

    name: str
    about: str
    llama: LlamaPeer
    sampling: Sampling

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache."""
        return self.llama.answer(task.tokens, _sampling(self.sampling, task), task.most)


@dataclass
class Server:
    """A running ``llama-server``."""

    name: str
    about: str
    address: str
    sampling: Sampling

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache; the times are the server's own."""
        request = {
            "prompt": list(task.tokens),
            "n_predict": task.most,
            "cache_prompt": False,
            **_sampling(self.sampling, task).model_dump(include=_SAMPLING),
        }
        return tally_of_timings(_post(f"{self.address}/completion", request))


def _sampling(sampling: Sampling, task: Task) -> Sampling:
    """The temperature of the task, and without a seed that of its turn."""
    seed = task.turn if sampling.seed is None else sampling.seed
    return sampling.model_copy(update={"temperature": task.temperature, "seed": seed})


@contextmanager
def peers(pair: Pair, sampling: Sampling, room: int) -> Iterator[list[Program]]:
    """All peers that are installed, running; they end with the block.

    Args:
        pair: whose files they get.
        sampling: how they draw, but for the temperature.
        room: tokens of context.

    Raises:
        DSparkError: one of them does not start.

    """
    with ExitStack() as stack:
        found: list[Program] = []
        for guesses, (name, about) in _GUESSES.items():
            llama = LlamaPeer(pair.target, room, guesses)
            stack.callback(llama.close)
            found.append(InProcess(name, about, llama, sampling))
        if program := shutil.which(SERVER):
            version = re.search(r"version: *(.+)", _output(program, "--version"))
            about = f"{SERVER} {version[1].strip() if version else 'unknown version'}"
            words = _model_words(pair, room)
            address = stack.enter_context(serving(program, words))
            found.append(Server("server", f"{about}, plain", address, sampling))
            if draft := _draft_words(pair, program):
                address = stack.enter_context(serving(program, [*words, *draft]))
                found.append(Server("server-draft", f"{about}, its defaults", address, sampling))
        yield found


def _draft_words(pair: Pair, program: str) -> list[str]:
    cache = pair.draft_cache()
    if cache is None:
        return []
    words = ["-md", str(cache.model.path), "-ngld", str(cache.model.gpu_layers)]
    # Newer builds draft only if told how; a block draft's file says it.
    if cache.kind != "block" and "--spec-type" in _output(program, "--help"):
        words += ["--spec-type", "draft-simple"]
    return words


def _model_words(pair: Pair, room: int) -> list[str]:
    options = pair.target.options
    threads = options.threads or physical_cores()
    return [
        *("-m", str(pair.target.path), "-c", str(room)),
        *("-t", str(threads), "-tb", str(options.threads_batch or threads)),
        *("-b", str(options.n_batch), "-ub", str(options.n_ubatch)),
        *("-ngl", str(pair.target.gpu_layers)),
        *("-ctk", options.cache_type_k, "-ctv", options.cache_type_v),
    ]


def tally_of_timings(answer: dict[str, Any]) -> Tally:
    """What a server says about one answer.

    Raises:
        DSparkError: it gives no times.

    """
    try:
        timings = answer["timings"]
        drafted = int(timings.get("draft_n", 0))
        accepted = int(timings.get("draft_n_accepted", 0))
        count = int(timings["predicted_n"])
        prompt, spent = (float(timings[f"{part}_ms"]) / 1e3 for part in ("prompt", "predicted"))
    except (KeyError, TypeError, ValueError):
        raise _failed(f"timings {answer.get('timings')!r}") from None
    # The first token comes with the pass over the prompt: its time is not in what was spent.
    return Tally(
        rounds=max(count - 1 - accepted, 0),
        tokens=max(count - 1, 0),
        drafted=drafted,
        accepted=accepted,
        seconds=prompt + spent,
        prefill_seconds=prompt,
        first_token_seconds=prompt,
    )


@contextmanager
def serving(program: str, words: Sequence[str]) -> Iterator[str]:
    """A server on a free port, in a session of its own, so that Ctrl-C does not reach it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, *words, "--host", "127.0.0.1", "--port", str(port), "-np", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            if not _healthy(process, address):
                log.seek(0)
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
                raise _failed(lines[-1][:300] if lines else "no output")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(process: subprocess.Popen[bytes], address: str) -> bool:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def _post(address: str, values: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address, json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
            answer = json.loads(response.read())
    except urllib.error.HTTPError as error:
        said = error.read()[:200].decode("utf-8", "replace")
        raise _failed(f"{error.code}: {said}") from None
    except (OSError, ValueError) as error:
        raise _failed(str(error)) from None
    return answer if isinstance(answer, dict) else {}


def _output(program: str, word: str) -> str:
    try:
        done = subprocess.run(
            [program, word], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _failed(what: str) -> DSparkError:
    return DSparkError(f"{SERVER} does not work ({what})", "Run it by hand, or leave out --peer.")
