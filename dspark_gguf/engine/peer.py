"""llama-cpp-python's own loop, timed: what others get from the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from dspark_gguf.config import Sampling
from dspark_gguf.engine.library import physical_cores, type_number
from dspark_gguf.engine.llama import SafeLlama
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import ResourceError
from dspark_gguf.tally import Tally


def version() -> str:
    """Of the binding, and of the llama.cpp inside."""
    return f"{llama_cpp.__version__} (llama.cpp {llama_cpp.llama_version().decode()})"


class LlamaPeer:
    """A ``llama_cpp.Llama`` of its own, loaded as `model` was.

    Args:
        model: the target.
        n_ctx: tokens of context; with lookup it keeps a table of all logits for as many.
        guesses: tokens that its ``LlamaPromptLookupDecoding`` guesses; 0: plain decoding.
        clock: seconds.

    Raises:
        ResourceError: not enough memory.

    """

    def __init__(
        self,
        model: Model,
        n_ctx: int,
        guesses: int = 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        options, self._clock = model.options, clock
        self._ends = frozenset(model.vocabulary.end_tokens)
        threads = options.threads or physical_cores()
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=guesses) if guesses else None
        try:
            self._llama = SafeLlama(
                str(model.path),
                extra_buffers=options.extra_buffers,
                n_ctx=n_ctx,
                n_gpu_layers=model.gpu_layers,
                n_batch=options.n_batch,
                n_ubatch=options.n_ubatch,
                n_threads=threads,
                n_threads_batch=options.threads_batch or threads,
                type_k=type_number(options.cache_type_k),
                type_v=type_number(options.cache_type_v),
                flash_attn=options.flash_attn == "on",
                offload_kqv=options.kv_offload,
                draft_model=lookup,
                verbose=False,
            )
        except (ValueError, MemoryError) as error:
            raise ResourceError(
                "memory for llama-cpp-python's own Llama", str(error), "leave out --peer"
            ) from None

    def answer(self, prompt: Sequence[int], sampling: Sampling, most: int) -> Tally:
        """Answer from an empty cache.

        The first token ends the pass over the prompt: both are in the seconds of reading it. How
        many passes there were is not known.
        """
        self._llama.reset()
        self._llama.set_seed(sampling.seed or 0)
        started = self._clock()
        tokens = self._llama.generate(
            list(prompt),
            temp=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repeat_penalty=sampling.repeat_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
        )
        count, first, now = 0, started, started
        for token in tokens:
            now = self._clock()
            if not count:
                first = now
            count += 1
            if token in self._ends or count == most:
                break
        return Tally(
            tokens=count - 1,
            seconds=now - started,
            prefill_seconds=first - started,
            first_token_seconds=first - started,
        )

    def close(self) -> None:
        """Free its memory."""
        self._llama.close()
