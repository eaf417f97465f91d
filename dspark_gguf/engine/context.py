"""A context: the KV cache of one conversation, and the passes that fill it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from threading import Event
from typing import Any, Protocol

import llama_cpp
import numpy as np

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.footprint import Footprint
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model, looks_like_memory, require_memory
from dspark_gguf.engine.rollback import Kind, Rollback
from dspark_gguf.engine.rows import Rows
from dspark_gguf.errors import Cancelled, EngineError, ModelError, ResourceError

_FLASH = {"auto": -1, "off": 0, "on": 1}
_ROPE = {None: -1, "none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_SEQUENCE = 0
#: Tokens from which on what comes before the rows that are wanted is read in a pass of its own, so
#: that a state can be saved behind it: a draft reads few tokens again rather than pay a pass more.
_LONG = 16


class Listener(Protocol):
    """Who wants to know what a context reads: a draft that works on its features."""

    def passed(self, count: int) -> None:
        """The context has read `count` tokens more; what the pass left is still there."""

    def trimmed(self, length: int) -> None:
        """All tokens from position `length` on are void.

        Of those before, the context may have to read the last ones again.
        """


class Context:
    """One sequence of tokens in the memory of one model.

    Tokens are taken back by whatever way its memory has (``rollback.py``). Where that leads further
    back than was asked for, `length` says so, and whoever decodes next reads what is missing again.

    Args:
        model: the weights.
        n_ctx: most tokens it can hold.
        max_rows: most rows of logits a pass returns; the compute buffer is sized for it. With 1 it
            is a draft's: what its passes read one by one may be taken back.
        interrupt: when set, work on a long prompt ends with `Cancelled`.

    Raises:
        ResourceError: the cache does not fit in memory.

    Attributes:
        tokens: the ids in the cache, in order. The cache holds exactly these, or, after an
            interrupted pass, these and something more that the next `restart` removes.
        listener: is told of every pass and of everything taken back.
        max_rows: as the argument; fewer where the memory cannot take back as many.

    """

    def __init__(self, model: Model, n_ctx: int, max_rows: int, interrupt: Event) -> None:
        self.model, self.n_ctx, self.max_rows = model, n_ctx, max_rows
        self._is_draft = max_rows == 1
        self.tokens: list[int] = []
        self.listener: Listener | None = None
        self._interrupt = interrupt
        self._unsure = False
        footprint = Footprint(read_header(model.path), model.options)
        # A draft reads token by token, and snapshots reach back no further than the last pass.
        snapshots = 0 if self._is_draft else footprint.snapshots(max_rows - 1)
        # llama.cpp ends the process where the tokens of all snapshots do not fit one batch.
        self._n_batch = max(model.options.n_batch, max_rows, snapshots + 2)
        self.cache_bytes = footprint.cache_bytes(n_ctx, 1 + snapshots)
        self._context = self._create(snapshots)
        self._rollback = Rollback(
            self._context, model.is_recurrent, model.window, model.options.swa_full
        )
        if self._rollback.kind == "snapshots":
            self.max_rows = min(max_rows, 1 + self._rollback.snapshots)
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._ids = np.ctypeslib.as_array(self._batch.token, (self._n_batch,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (self._n_batch,))
        self._wanted = np.ctypeslib.as_array(self._batch.logits, (self._n_batch,))
        for k in range(self._n_batch):
            self._batch.n_seq_id[k] = 1
            self._batch.seq_id[k][0] = _SEQUENCE
        # Also at exit, and before the model's: some backends abort on memory that is still in use.
        self._free = weakref.finalize(self, _free, self._context, self._batch)

    @property
    def pointer(self) -> Any:
        """llama.cpp's context."""
        return self._context

    @property
    def n_tokens(self) -> int:
        """Size of the model's vocabulary."""
        return self.model.vocabulary.n_tokens

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    @property
    def rollback(self) -> Kind:
        """How it takes back tokens."""
        return self._rollback.kind

    def close(self) -> None:
        """Free the cache."""
        self._free()

    def use_threads(self, threads: int, threads_batch: int) -> None:
        """CPU threads from the next pass on: of a pass over one token, and of one over more."""
        llama_cpp.llama_set_n_threads(self._context, threads, threads_batch)

    def restart(self, tokens: Sequence[int]) -> int:
        """Make the cache hold exactly `tokens`, and return how many of them it already held.

        Raises:
            Cancelled: the user interrupted; what was read so far stays.

        """
        kept = self.keep(tokens)
        self.advance(tokens[kept:], 0)
        self._rollback.mark(self.length)
        return kept

    def keep(self, tokens: Sequence[int]) -> int:
        """Drop what is not a prefix of `tokens`, and return the length of what stays."""
        self._take_back(common_prefix(self.tokens, tokens))
        if self.listener is not None:
            self.listener.trimmed(self.length)
        return self.length

    def adopt(self, tokens: Sequence[int]) -> None:
        """Its memory was filled by other means, and holds exactly `tokens` now."""
        self.tokens[:] = tokens
        self._rollback.mark(self.length)

    def trim(self, length: int) -> None:
        """Take back all tokens from position `length` on; a longer `length` changes nothing.

        What stands before `length` is settled: only an edit will take it back.
        """
        self._take_back(length)
        self._rollback.settle(length)
        if self.listener is not None:
            self.listener.trimmed(length)

    def decode(self, tokens: Sequence[int]) -> Rows:
        """One pass over `tokens`, which follow those in the cache: a row of logits for each."""
        return self.advance(tokens, len(tokens))

    def advance(self, tokens: Sequence[int], n_rows: int) -> Rows:
        """Read `tokens`, which follow those in the cache; logits for the last `n_rows`.

        Raises:
            Cancelled: the user interrupted between two batches; what was read so far stays.
            ResourceError: the cache is full.
            EngineError: llama.cpp failed.
            ValueError: more than `max_rows` rows.

        """
        if self.length + len(tokens) > self.n_ctx:
            raise ResourceError(
                f"room for {self.length + len(tokens)} tokens",
                f"a context of {self.n_ctx}",
                "use a larger --ctx-size",
            )
        if n_rows > self.max_rows:  # llama.cpp would end the process
            raise ValueError(f"{n_rows} rows of a context made for {self.max_rows}")
        if n_rows > 1 or (n_rows and self._is_draft):
            tokens = self._made_safe(tokens, n_rows)
        # A short batch comes first, so that the rows that are wanted lie in the last one.
        end = len(tokens) % self._n_batch or self._n_batch
        start = 0
        while start < len(tokens):
            if self._interrupt.is_set():
                raise Cancelled
            if start:
                self._rollback.mark(self.length)
            self._pass(tokens[start:end], n_rows if end >= len(tokens) else 0)
            start, end = end, end + self._n_batch
        last = min(len(tokens), self._n_batch)
        return Rows(self, last - n_rows, n_rows)

    def _made_safe(self, tokens: Sequence[int], n_rows: int) -> Sequence[int]:
        """Make it possible to take the last `n_rows` back; returns the tokens still to read."""
        if self.rollback == "removal":
            return tokens
        head = len(tokens) - n_rows
        if head > _LONG or (head and self.rollback == "replay" and not self._is_draft):
            self.advance(tokens[:head], 0)
            if head > _LONG:
                self._rollback.mark(self.length)
            tokens = tokens[head:]
        self._rollback.save(self.length)
        return tokens

    def _pass(self, tokens: Sequence[int], n_rows: int) -> None:
        count = len(tokens)
        self._ids[:count] = tokens
        self._positions[:count] = np.arange(self.length, self.length + count)
        self._wanted[: count - n_rows] = 0
        self._wanted[count - n_rows : count] = 1
        self._batch.n_tokens = count
        # Unsure until the books are right again: an exception may strike between any two lines.
        self._unsure = True
        self._rollback.lost()
        with library.listening() as errors:
            status = llama_cpp.llama_decode(self._context, self._batch)
            if status == 0:
                llama_cpp.llama_synchronize(self._context)
        if status != 0:
            raise decode_error(status, "; ".join(errors), self.n_ctx)
        self.tokens.extend(tokens)
        self._rollback.passed(count)
        self._unsure = False
        if self.listener is not None:
            self.listener.passed(count)

    def _take_back(self, length: int) -> None:
        """As far as `length`, or further; also what an interrupted pass may have left."""
        length = min(length, self.length)
        if length == self.length and not self._unsure:
            return
        self._unsure = True
        length = self._rollback.back(length, self.length)
        del self.tokens[length:]
        self._unsure = False

    def _create(self, snapshots: int) -> Any:
        options = self.model.options
        on_cpu = not self.model.gpu_layers or not options.kv_offload
        if on_cpu:
            require_memory(self.cache_bytes, f"the {self.n_ctx}-token cache of {self.model.name}")
        params = self._params(options)
        params.n_rs_seq = snapshots
        if snapshots:
            params.n_ubatch = max(params.n_ubatch, snapshots + 2)
        with library.listening() as errors:
            context = llama_cpp.llama_init_from_model(self.model.pointer, params)
        if not context:
            raise self._create_error("; ".join(errors))
        return context

    def _params(self, options: ModelOptions) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = self._n_batch
        params.n_ubatch = min(options.n_ubatch, self._n_batch)
        params.n_outputs_max = self.max_rows
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

    def _create_error(self, log: str) -> ResourceError | ModelError:
        size = self.cache_bytes / 1024**2
        if looks_like_memory(log) or not log:
            return ResourceError(
                f"memory for a context of {self.n_ctx} tokens ({size:.0f} MiB of cache)",
                log or "a refusal from llama.cpp",
                "use a smaller --ctx-size or cache type",
            )
        return ModelError(
            f"a context for {self.model.name} with these options",
            log,
            "change the option that it names",
        )


def _free(context: Any, batch: Any) -> None:
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two token lists."""
    length = min(len(left), len(right))
    if not length:
        return 0
    differs = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(differs.argmax()) if differs.any() else length


def decode_error(status: int, log: str, n_ctx: int) -> EngineError | ResourceError:
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
