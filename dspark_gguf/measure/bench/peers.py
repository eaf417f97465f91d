"""What others make of the same files and prompts: llama-cpp-python, and llama.cpp's server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dspark_gguf.config import ModelOptions, Sampling
from dspark_gguf.engine.library import physical_cores
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.peer import LlamaPeer
from dspark_gguf.measure.bench.tools import Server, drawn, help_of, serving, version
from dspark_gguf.measure.bench.turns import Program, Task
from dspark_gguf.tally import Tally

SERVER = "llama-server"
#: Guesses of llama-cpp-python's prompt lookup: its default, and what it recommends for CPUs.
_GUESSES = (10, 2)


@dataclass
class InProcess:
    """llama-cpp-python's own ``Llama``."""

    name: str
    about: str
    llama: LlamaPeer
    sampling: Sampling

    def answer(self, task: Task) -> Tally:
        """Answer from an empty cache."""
        return self.llama.answer(task.tokens, drawn(self.sampling, task), task.most)


@contextmanager
def peers(pair: Pair, sampling: Sampling, room: int) -> Iterator[list[Program]]:
    """All peers that are here, running; ended with the block.

    Args:
        pair: whose files they get.
        sampling: how they draw, but for the temperature.
        room: tokens of context.

    Raises:
        DSparkError: one that is here does not start.

    """
    with ExitStack() as stack:
        found: list[Program] = []
        for guesses in (0, *_GUESSES):
            llama = LlamaPeer(pair.target, room, guesses)
            stack.callback(llama.close)
            found.append(InProcess(*_llama_names(guesses), llama, sampling))
        words = _model_words(pair, room)
        if program := shutil.which(SERVER):
            about = f"{SERVER} {version(program)}"
            draft = _draft_words(pair, program)
            address = stack.enter_context(serving(program, words))
            found.append(Server("server", f"{about}, plain", address, sampling))
            if draft:
                address = stack.enter_context(serving(program, [*words, *draft]))
                found.append(Server("server-draft", f"{about}, its defaults", address, sampling))
        yield found


def _llama_names(guesses: int) -> tuple[str, str]:
    if not guesses:
        return "llama-py", "llama-cpp-python's Llama, plain"
    return f"py-lookup-{guesses}", f"llama-cpp-python's prompt lookup of {guesses}"


def _draft_words(pair: Pair, program: str) -> list[str]:
    """The options that name the draft; none where there is none."""
    cache = pair.draft_cache()
    if cache is None:
        return []
    words = ["-md", str(cache.model.path), "-ngld", str(cache.model.gpu_layers)]
    # Newer builds draft only when told how; of a block draft its file tells them.
    if cache.kind != "block" and "--spec-type" in help_of(program):
        words += ["--spec-type", "draft-simple"]
    return words


def _model_words(pair: Pair, room: int) -> list[str]:
    options: ModelOptions = pair.target.options
    threads = options.threads or physical_cores()
    return [
        *("-m", str(pair.target.path), "-c", str(room)),
        *("-t", str(threads), "-tb", str(options.threads_batch or threads)),
        *("-b", str(options.n_batch), "-ub", str(options.n_ubatch)),
        *("-ngl", str(pair.target.gpu_layers)),
        *("-ctk", options.cache_type_k, "-ctv", options.cache_type_v),
    ]
