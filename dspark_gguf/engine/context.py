"""llama.cpp's contexts: opened for a model, or borrowed; one batch, one pass at a time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from threading import Event
from typing import Any

import llama_cpp
import numpy as np

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.footprint import Footprint
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model, looks_like_memory, require_memory
from dspark_gguf.errors import EngineError, ModelError, ResourceError

_FLASH = {"auto": -1, "off": 0, "on": 1}
_ROPE = {None: -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}


class Context:
    """A ``llama_context`` and the batch that its passes read.

    Args:
        pointer: llama.cpp's context.
        n_ctx: most tokens of a sequence.
        n_vocab: width of a row of logits.
        n_batch: most tokens of a pass.
        interrupt: when set, work on a long prompt ends with `Cancelled`.
        owner: who frees the context, kept alive meanwhile; None: this object.

    """

    def __init__(
        self,
        pointer: Any,
        n_ctx: int,
        n_vocab: int,
        n_batch: int,
        interrupt: Event,
        owner: object = None,
    ) -> None:
        self.pointer, self.n_ctx, self.n_vocab, self.n_batch = pointer, n_ctx, n_vocab, n_batch
        self.interrupt = interrupt
        self._owner = owner
        self._batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        self._ids = np.ctypeslib.as_array(self._batch.token, (n_batch,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (n_batch,))
        self._wanted = np.ctypeslib.as_array(self._batch.logits, (n_batch,))
        self._sequence = -1  # of all places in the batch
        for k in range(n_batch):
            self._batch.n_seq_id[k] = 1
        # Also at exit, and before the model's: some backends abort on memory that is still in use.
        self._free = weakref.finalize(
            self, _free, None if owner is not None else pointer, self._batch
        )

    def close(self) -> None:
        """Free the batch, and a context of our own."""
        self._free()

    def run(self, sequence: int, tokens: Sequence[int], position: int, n_rows: int) -> None:
        """One pass: `tokens` of a sequence from `position` on, logits for the last `n_rows`.

        Raises:
            ResourceError: no free place.
            EngineError: llama.cpp failed.

        """
        count = len(tokens)
        self._ids[:count] = tokens
        self._positions[:count] = np.arange(position, position + count)
        self._wanted[: count - n_rows] = 0
        self._wanted[count - n_rows : count] = 1
        if sequence != self._sequence:
            for k in range(self.n_batch):
                self._batch.seq_id[k][0] = sequence
            self._sequence = sequence
        self._batch.n_tokens = count
        self.decode(self._batch)

    def decode(self, batch: Any) -> None:
        """A pass over a batch, finished.

        Raises:
            ResourceError: no free place.
            EngineError: llama.cpp failed.

        """
        with library.listening() as errors:
            status = llama_cpp.llama_decode(self.pointer, batch)
            if status == 0:
                llama_cpp.llama_synchronize(self.pointer)
        if status != 0:
            raise _decode_error(status, "; ".join(errors), self.n_ctx)


def open_context(
    model: Model,
    n_ctx: int,
    max_rows: int,
    interrupt: Event,
    *,
    snapshots: int = 0,
    features_of: Context | None = None,
) -> Context:
    """A context of our own.

    Args:
        model: the weights.
        n_ctx: most tokens it can hold.
        max_rows: most rows of logits of a pass; the compute buffer is sized for it.
        interrupt: see `Context`.
        snapshots: states of a recurrent memory that are kept to go back to.
        features_of: the target's context, for a block draft: a block is then computed in one piece.

    Raises:
        ResourceError: the cache does not fit in memory.
        ModelError: llama.cpp refuses these options.

    """
    options = model.options
    size = Footprint(read_header(model.path), options).cache_bytes(n_ctx, 1 + snapshots)
    if not model.gpu_layers or not options.kv_offload:
        require_memory(size, f"the {n_ctx}-token cache of {model.name}")
    # llama.cpp ends the process where the tokens of all snapshots do not fit one batch.
    n_batch = max(options.n_batch, max_rows, snapshots + 2)
    params = context_params(options, n_ctx, n_batch, max_rows)
    params.n_rs_seq = snapshots
    if snapshots:
        params.n_ubatch = max(params.n_ubatch, snapshots + 2)
    if features_of is not None:
        params.ctx_other = features_of.pointer
        # Positions of a block see each other: llama.cpp wants them in one piece.
        params.n_ubatch = max(params.n_ubatch, max_rows)
    with library.listening() as errors:
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        raise _create_error(model, n_ctx, size, "; ".join(errors))
    return Context(pointer, n_ctx, model.vocabulary.n_vocab, n_batch, interrupt)


def context_params(options: ModelOptions, n_ctx: int, n_batch: int, max_rows: int) -> Any:
    """llama.cpp's structure."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = n_batch
    params.n_ubatch = min(options.n_ubatch, n_batch)
    params.n_outputs_max = max_rows
    params.n_outputs_max_per_seq = 0
    params.n_threads = options.threads or library.physical_cores()
    params.n_threads_batch = options.threads_batch or params.n_threads
    params.flash_attn_type = _FLASH[options.flash_attn]
    params.type_k = library.type_number(options.cache_type_k)
    params.type_v = library.type_number(options.cache_type_v)
    params.offload_kqv = options.kv_offload
    params.swa_full = options.swa_full
    params.rope_scaling_type = _ROPE[options.rope_scaling]
    for name in ("rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor"):
        setattr(params, name, getattr(options, name))
    for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"):
        setattr(params, name, getattr(options, name))
    return params


def _create_error(model: Model, n_ctx: int, size: int, log: str) -> ResourceError | ModelError:
    if looks_like_memory(log) or not log:
        return ResourceError(
            f"memory for a context of {n_ctx} tokens ({size / 1024**2:.0f} MiB of cache)",
            log or "a refusal from llama.cpp",
            "use a smaller --ctx-size or cache type",
        )
    return ModelError(
        f"a context for {model.name} with these options",
        log,
        "change the option that it names",
    )


def _free(context: Any, batch: Any) -> None:
    llama_cpp.llama_batch_free(batch)
    if context is not None:
        with library.listening():
            llama_cpp.llama_free(context)


def _decode_error(status: int, log: str, n_ctx: int) -> EngineError | ResourceError:
    """What llama.cpp's status says, in words."""
    if status == 1:
        return ResourceError(
            "a free place in the cache", f"none of {n_ctx}", "use a larger --ctx-size"
        )
    if looks_like_memory(log):
        return ResourceError("memory for this pass", log, "use a smaller --ubatch-size")
    return EngineError(
        "a finished pass of the model",
        f"status {status} from llama.cpp ({log or 'no reason given'})",
        "try again; `-v` shows llama.cpp's log",
    )
