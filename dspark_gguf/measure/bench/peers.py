"""The same models and prompts in llama-cpp-python and in llama.cpp's own server."""

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
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from time import perf_counter
from typing import Any

from dspark_gguf.config import Sampling
from dspark_gguf.engine import library
from dspark_gguf.engine.llama import LlamaPromptLookupDecoding, SafeLlama
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError, ResourceError
from dspark_gguf.measure.bench.turns import Program, Task
from dspark_gguf.tally import Tally

SERVER = "llama-server"
#: Draft tokens of llama-cpp-python's prompt lookup: none, its default, and its advice for CPUs.
_GUESSES = {
    0: ("llama-py", "llama-cpp-python's Llama, plain"),
    10: ("py-lookup-10", "llama-cpp-python's prompt lookup of 10"),
    2: ("py-lookup-2", "llama-cpp-python's prompt lookup of 2"),
}
_START_SECONDS, _ANSWER_SECONDS = 300.0, 600.0
#: Settings that ``Llama.generate`` and the server know under the same names.
_SHARED = {
    "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty",
}  # fmt: skip
_SERVERS = _SHARED | {"temperature", "repeat_last_n", "seed"}


def binding_version() -> str:
    """Of llama-cpp-python, and of the llama.cpp in it."""
    return f"{version('llama_cpp_python')} (llama.cpp {library.versions().get('llama.cpp')})"


@contextmanager
def peers(pair: Pair, sampling: Sampling, room: int) -> Iterator[list[Program]]:
    """All installed peers, running with `room` tokens of context; they are closed at the end.

    A DSparkError says that one of them does not start.
    """
    with ExitStack() as stack:
        found: list[Program] = []
        for guesses in _GUESSES:
            llama = LlamaPeer(pair.target, room, sampling, guesses)
            found.append(stack.enter_context(closing(llama)))
        if program := shutil.which(SERVER):
            named = re.search(r"version: *(.+)", _output(program, "--version"))
            about = f"{SERVER} {named[1].strip() if named else 'unknown version'}"
            words = _model_words(pair, room)
            address = stack.enter_context(serving(program, words))
            found.append(Server("server", f"{about}, plain", address, sampling))
            if draft := _draft_words(pair, program):
                address = stack.enter_context(serving(program, [*words, *draft]))
                found.append(Server("server-draft", f"{about}, its defaults", address, sampling))
        yield found


class LlamaPeer:
    """llama-cpp-python's own ``Llama``: a second one, loaded as `model` was.

    With `guesses`, it looks up so many tokens in the prompt. A ResourceError says that there is not
    enough memory.
    """

    def __init__(self, model: Model, n_ctx: int, sampling: Sampling, guesses: int = 0) -> None:
        self.name, self.about = _GUESSES[guesses]
        options, self._sampling = model.options, sampling
        self._ends = frozenset(model.vocabulary.end_tokens)
        few, many = library.threads_of(options)
        try:
            self._llama = SafeLlama(
                str(model.path),
                extra_buffers=options.extra_buffers,
                n_ctx=n_ctx,
                n_gpu_layers=model.gpu_layers,
                n_batch=options.n_batch,
                n_ubatch=options.n_ubatch,
                n_threads=few,
                n_threads_batch=many,
                type_k=library.type_number(options.cache_type_k),
                type_v=library.type_number(options.cache_type_v),
                flash_attn=options.flash_attn == "on",
                offload_kqv=options.kv_offload,
                draft_model=LlamaPromptLookupDecoding(num_pred_tokens=guesses) if guesses else None,
                verbose=False,
            )
        except (ValueError, MemoryError) as error:
            raise ResourceError(
                f"not enough memory for llama-cpp-python's own Llama: {error}", "Leave out --peer."
            ) from None

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache; the number of passes is not known.

        The seconds of reading the prompt include the first token.
        """
        sampling = _sampling(self._sampling, task)
        self._llama.reset()
        self._llama.set_seed(sampling.seed)
        started = perf_counter()
        times = []
        for token in self._llama.generate(
            list(task.tokens), temp=sampling.temperature, **sampling.model_dump(include=_SHARED)
        ):
            times.append(perf_counter())
            if token in self._ends or len(times) == task.most:
                break
        first, last = times[0] - started, times[-1] - started
        return Tally(
            tokens=len(times) - 1, seconds=last, prefill_seconds=first, first_token_seconds=first
        )

    def close(self) -> None:
        """Free its memory."""
        self._llama.close()


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
            **_sampling(self.sampling, task).model_dump(include=_SERVERS),
        }
        return tally_of_timings(_post(f"{self.address}/completion", request))


def tally_of_timings(answer: dict[str, Any]) -> Tally:
    """A server's own figures for an answer; a DSparkError if it reports no times."""
    try:
        timings = answer["timings"]
        count, drafted = int(timings["predicted_n"]), int(timings.get("draft_n", 0))
        accepted = int(timings.get("draft_n_accepted", 0))
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


def _sampling(sampling: Sampling, task: Task) -> Sampling:
    """The temperature of the task, and without a seed that of its turn."""
    seed = task.turn if sampling.seed is None else sampling.seed
    return sampling.model_copy(update={"temperature": task.temperature, "seed": seed})


#: Our kinds of drafts -> llama.cpp's, of those that it must be told.
_SPEC_TYPES = {"model": "draft-simple", "mtp": "draft-mtp", "eagle3": "draft-eagle3"}


def _draft_words(pair: Pair, program: str) -> list[str]:
    cache = pair.draft_cache()
    if cache is None:
        return []
    words = ["-md", str(cache.model.path), "-ngld", str(cache.model.gpu_layers)]
    if cache.model.path == pair.target.path and cache.kind == "mtp":
        words = []  # the target's own heads
    # Newer builds draft only if told how; a block draft's file says it.
    if cache.kind in _SPEC_TYPES and "--spec-type" in _output(program, "--help"):
        words += ["--spec-type", _SPEC_TYPES[cache.kind]]
    return words


def _model_words(pair: Pair, room: int) -> list[str]:
    options = pair.target.options
    few, many = library.threads_of(options)
    return [
        *("-m", str(pair.target.path), "-c", str(room)),
        *("-t", str(few), "-tb", str(many)),
        *("-b", str(options.n_batch), "-ub", str(options.n_ubatch)),
        *("-ngl", str(pair.target.gpu_layers)),
        *("-ctk", options.cache_type_k, "-ctv", options.cache_type_v),
    ]


@contextmanager
def serving(program: str, words: Sequence[str], slots: int = 1) -> Iterator[str]:
    """A server on a free port, in a session of its own, so that Ctrl-C does not reach it.

    It answers as many requests at once as it has `slots`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, *words, "--host", "127.0.0.1", "--port", str(port), "-np", str(slots)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            if not _healthy(process, address):
                log.seek(0)
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
                raise _failed(lines[-1][:300] if lines else "no output")
            yield address
        finally:
            process.kill()  # it has nothing to save


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
    done = subprocess.run([program, word], capture_output=True, text=True, errors="replace")
    return done.stdout + done.stderr


def _failed(what: str) -> DSparkError:
    return DSparkError(f"{SERVER} does not work ({what})", "Run it by hand, or leave out --peer.")
