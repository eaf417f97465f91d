"""llama.cpp's own server: run, asked, and its figures read."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspark_gguf.config import Sampling
from dspark_gguf.errors import DSparkError
from dspark_gguf.measure.bench.turns import Task
from dspark_gguf.tally import Tally

_START_SECONDS, _ANSWER_SECONDS = 300.0, 600.0


@dataclass
class Server:
    """A running ``llama-server``."""

    name: str
    about: str
    address: str
    sampling: Sampling

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache; the times are the server's own."""
        sampling = drawn(self.sampling, task)
        request = {
            "prompt": list(task.tokens),
            "n_predict": task.most,
            "cache_prompt": False,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": sampling.repeat_last_n,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": sampling.seed,
        }
        return tally_of_timings(_post(f"{self.address}/completion", request), self.name)


def drawn(sampling: Sampling, task: Task) -> Sampling:
    """How a peer draws: the temperature of the task, and a seed of its turn."""
    seed = task.turn if sampling.seed is None else sampling.seed
    return sampling.model_copy(update={"temperature": task.temperature, "seed": seed})


def tally_of_timings(answer: dict[str, Any], program: str) -> Tally:
    """What a server says of one answer.

    Raises:
        DSparkError: nothing of the kind.

    """
    try:
        timings = answer["timings"]
        drafted = int(timings.get("draft_n", 0))
        accepted = int(timings.get("draft_n_accepted", 0))
        count = int(timings["predicted_n"])
        prompt, spent = (float(timings[f"{part}_ms"]) / 1e3 for part in ("prompt", "predicted"))
    except (KeyError, TypeError, ValueError):
        raise _failed(program, f"timings {answer.get('timings')!r}") from None
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
    """A server on a free port of this machine, in a session of its own: a Ctrl-C is not for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        program, *words,
        "--host", "127.0.0.1", "--port", str(port), "-np", "1",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            if not _healthy(process, address):
                log.seek(0)
                raise _failed(program, _last_line(log.read().decode("utf-8", "replace")))
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
        raise _failed("llama-server", f"{error.code}: {said}") from None
    except (OSError, ValueError) as error:
        raise _failed("llama-server", str(error)) from None
    return answer if isinstance(answer, dict) else {}


def version(program: str) -> str:
    """Build number and commit, as far as the program knows them."""
    said = _run(program, "--version")
    found = re.search(r"version: *(.+)", said)
    return found[1].strip() if found else "unknown version"


def help_of(program: str) -> str:
    """What it says of its options."""
    return _run(program, "--help")


def _run(program: str, word: str) -> str:
    try:
        done = subprocess.run(
            [program, word], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else "nothing"


def _failed(program: str, got: str) -> DSparkError:
    return DSparkError(
        f"a working {Path(program).name}", got, "run it by hand, or leave out --peer"
    )
