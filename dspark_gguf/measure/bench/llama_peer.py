"""llama-cpp-python's own loop, timed with the same file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version as version_of
from time import perf_counter

from dspark_gguf.config import Sampling
from dspark_gguf.engine import build
from dspark_gguf.engine.library import physical_cores, type_number
from dspark_gguf.engine.llama import LlamaPromptLookupDecoding, SafeLlama
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import ResourceError
from dspark_gguf.tally import Tally

#: Settings that ``Llama.generate`` takes under the same name.
_SAME_NAME = (
    "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty",
)  # fmt: skip


def version() -> str:
    """Of the binding, and of the llama.cpp in it."""
    return f"{version_of('llama_cpp_python')} (llama.cpp {build.versions().get('llama.cpp')})"


class LlamaPeer:
    """A second ``llama_cpp.Llama``, loaded as `model` was.

    Args:
        model: the target.
        n_ctx: tokens of context; with lookup it keeps a table of the logits of all.
        guesses: tokens that its ``LlamaPromptLookupDecoding`` guesses; 0: plain decoding.
        clock: seconds.

    Raises:
        ResourceError: not enough memory.

    """

    def __init__(
        self, model: Model, n_ctx: int, guesses: int = 0, clock: Callable[[], float] = perf_counter
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
                f"not enough memory for llama-cpp-python's own Llama: {error}", "Leave out --peer."
            ) from None

    def answer(self, prompt: Sequence[int], sampling: Sampling, most: int) -> Tally:
        """Answer from an empty cache; the number of passes is not known.

        The seconds of reading the prompt include the first token.
        """
        self._llama.reset()
        self._llama.set_seed(sampling.seed or 0)
        started = self._clock()
        tokens = self._llama.generate(
            list(prompt),
            temp=sampling.temperature,
            **{name: getattr(sampling, name) for name in _SAME_NAME},
        )
        times = []
        for token in tokens:
            times.append(self._clock())
            if token in self._ends or len(times) == most:
                break
        first, last = (times[0], times[-1]) if times else (started, started)
        prefill = first - started
        return Tally(
            tokens=len(times) - 1, seconds=last - started, prefill_seconds=prefill,
            first_token_seconds=prefill,
        )  # fmt: skip

    def close(self) -> None:
        """Free its memory."""
        self._llama.close()
