"""llama.cpp's contexts, opened for a model or borrowed: run a pass, read its logits."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from threading import Event
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.memory import Footprint, looks_like_memory, require_memory
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import CacheFullError, EngineError, ModelError, ResourceError
from dspark_gguf.paths import MIB
from dspark_gguf.signals import held

_FLASH = {"auto": -1, "off": 0, "on": 1}
_ROPE = {None: -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
#: Options with the same name in llama.cpp's struct.
_SAME_NAME = (
    "swa_full", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx",
    "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
)  # fmt: skip


class Part(NamedTuple):
    """A sequence's part of a pass: `tokens` from `position` on, logits for the last `n_rows`."""

    sequence: int
    position: int
    tokens: Sequence[int]
    n_rows: int


class Context:
    """A ``llama_context`` and its batch.

    All its sequences together have room for `n_ctx` tokens; a pass reads at most `n_batch`; a row
    of logits is `n_vocab` wide. Prefill of a long prompt ends with `Cancelled` once `interrupt` is
    set. The `owner` of the `pointer`, which is kept alive, frees it; if None, this object does.
    """

    cache_bytes = max_rows = 0  # size of its cache, maximum rows of a pass; if we opened it

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
        self.interrupt, self._owner = interrupt, owner
        self._ids, self._positions, self._sequences = np.zeros((3, n_batch), dtype=np.int32)
        self._wanted, self._ones = np.zeros(n_batch, np.int8), np.ones(n_batch, np.int32)
        number, flag = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int8)
        # Pointers to the sequence id of each token.
        self._places = self._sequences.ctypes.data + 4 * np.arange(n_batch, dtype=np.uintp)
        # Address and array of the last rows, in one tuple so that an exception cannot split them.
        self._view = (0, 0), np.empty((0, n_vocab), dtype=np.float32)
        self._batch = llama_cpp.llama_batch(
            token=self._ids.ctypes.data_as(number),
            pos=self._positions.ctypes.data_as(number),
            n_seq_id=self._ones.ctypes.data_as(number),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(number)),
            logits=self._wanted.ctypes.data_as(flag),
        )
        # Runs at exit too, before the model is freed: some backends abort on memory in use.
        owned = pointer if owner is None else None
        #: Frees the context unless it is borrowed.
        self.close = weakref.finalize(self, _free, owned)

    def run(self, parts: Sequence[Part]) -> None:
        """One pass over at most one part of each sequence, in ascending order."""
        end = 0
        for sequence, position, tokens, n_rows in parts:
            first, end = end, end + len(tokens)
            unwanted = end - n_rows
            # One by one: usually there is one token, and slicing an array takes longer.
            for k, token in enumerate(tokens, first):
                self._ids[k], self._positions[k] = token, position + k - first
                self._sequences[k], self._wanted[k] = sequence, k >= unwanted
        self._batch.n_tokens = end
        self.decode(self._batch)

    def rows(self, first: int, count: int) -> npt.NDArray[np.float32]:
        """Logits of the last pass ``[count, n_vocab]``, from index `first` in its batch on.

        A view into llama.cpp's memory, valid until the next pass.
        """
        if not count:
            return self._view[1][:0]
        pointer = llama_cpp.llama_get_logits_ith(self.pointer, first)
        if not pointer:
            problem = f"llama.cpp has no logits at row {first}"
            raise EngineError(problem, "Report this with the model's name.")
        place = ctypes.addressof(pointer.contents), count
        if place != self._view[0]:  # making an array from a pointer takes 0.1 ms
            self._view = place, np.ctypeslib.as_array(pointer, (count, self.n_vocab))
        return self._view[1]

    def decode(self, batch: Any) -> None:
        """One pass over a batch.

        Raises:
            CacheFullError: no room; nothing changed.
            ResourceError: not enough memory.
            EngineError: llama.cpp failed.
        """
        self._call(llama_cpp.llama_decode, batch)

    def encode(self, batch: Any) -> None:
        """One pass of a draft's encoder, which leaves the cache alone; raises like `decode`."""
        self._call(llama_cpp.llama_encode, batch)

    def _call(self, function: Any, batch: Any) -> None:
        with library.listening() as errors:
            status = function(self.pointer, batch)
            if status == 0:
                llama_cpp.llama_synchronize(self.pointer)
        if not status:
            return
        if status == 1:
            problem = f"the cache of {self.n_ctx} tokens is full"
            raise CacheFullError(problem, "Use a larger --ctx-size.")
        log = "; ".join(errors())
        if looks_like_memory(log):
            problem = f"not enough memory for this pass: {log}"
            raise ResourceError(problem, "Use a smaller --ubatch-size.")
        raise EngineError(
            f"llama.cpp could not finish a pass: status {status} ({log or 'no reason given'})",
            "Try again; `-v` shows llama.cpp's log.",
        )


@held()
def open_context(
    model: Model,
    n_ctx: int,
    max_rows: int,
    interrupt: Event,
    *,
    snapshots: int = 0,
    features_of: Context | None = None,
    heads: int | None = None,
    n_seq: int = 1,
) -> Context:
    """Open a context for a model, with a compute buffer for `max_rows` rows of logits.

    Its `n_seq` sequences share `n_ctx` cells. It keeps `snapshots` states of each recurrent memory
    to roll back to. For a draft that needs its target, `features_of` is the target's context:
    `max_rows` are then computed in one micro-batch. With `heads`, the context runs so many of the
    model's prediction heads instead of the model; 0: heads that use another model's cache.

    Raises:
        ResourceError: the cache does not fit in memory.
        ModelError: llama.cpp refuses these options.
    """
    options = model.options
    size = Footprint(model.header, options, heads).cache_bytes(n_ctx, n_seq * (1 + snapshots))
    if not model.gpu_layers or not options.kv_offload:
        require_memory(size, f"the {n_ctx}-token cache of {model.name}")
    # llama.cpp ends the process if the tokens of all snapshots do not fit into one batch.
    states = n_seq * (snapshots + 2)
    n_batch = max(options.n_batch, max_rows, states)
    params = context_params(options, n_ctx, n_batch, max_rows)
    params.n_rs_seq = snapshots
    params.n_seq_max, params.kv_unified = n_seq, n_seq > 1
    if snapshots:
        params.n_ubatch = max(params.n_ubatch, states)
    if heads is not None:
        params.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
    if features_of is not None:
        params.ctx_other = features_of.pointer
        # Positions of a block attend to each other, so they must be in one micro-batch.
        params.n_ubatch = max(params.n_ubatch, max_rows)
    with library.listening() as errors:
        pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    if not pointer:
        log = "; ".join(errors())
        if log and not looks_like_memory(log):
            raise ModelError(
                f"llama.cpp could not create a context for {model.name}: {log}",
                "Change the option that it names.",
            )
        raise ResourceError(
            f"not enough memory for a context of {n_ctx} tokens "
            f"({size / MIB:.0f} MiB of cache): {log or 'llama.cpp gives no reason'}",
            "Use a smaller --ctx-size or cache type.",
        )
    context = Context(pointer, n_ctx, model.vocabulary.n_vocab, n_batch, interrupt)
    context.cache_bytes, context.max_rows = size, max_rows
    return context


def context_params(options: ModelOptions, n_ctx: int, n_batch: int, max_rows: int) -> Any:
    """The options as llama.cpp's struct."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = n_batch
    params.n_ubatch = min(options.n_ubatch, n_batch)
    params.n_outputs_max = max_rows
    params.n_outputs_max_per_seq = 0
    params.n_threads, params.n_threads_batch = library.threads_of(options)
    params.flash_attn_type = _FLASH[options.flash_attn]
    params.type_k = library.type_number(options.cache_type_k)
    params.type_v = library.type_number(options.cache_type_v)
    params.offload_kqv = options.kv_offload
    params.rope_scaling_type = _ROPE[options.rope_scaling]
    for name in _SAME_NAME:
        setattr(params, name, getattr(options, name))
    return params


@held()
def _free(context: Any) -> None:
    if context is not None:
        with library.listening():
            llama_cpp.llama_free(context)
