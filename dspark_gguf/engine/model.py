"""A loaded GGUF: weights, vocabulary and properties."""

from __future__ import annotations

import copy
import ctypes
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import llama_cpp

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library, rpc, trial
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.heads import heads_size, kind_of, overrides_for
from dspark_gguf.engine.memory import looks_like_memory, require_memory, wanted_gpu_layers
from dspark_gguf.engine.placing import override_array, placements
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import Cancelled, DSparkError, ModelError, ResourceError, UsageError
from dspark_gguf.paths import size_on_disk
from dspark_gguf.progress import ProgressCallback, no_progress
from dspark_gguf.signals import held

#: Seconds of loading before progress is shown.
_PATIENCE = 0.5
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}


def file_stamp(path: Path) -> list[Any]:
    """Name, size and modification time of a file, to recognise it."""
    file = path.stat()
    return [path.name, file.st_size, file.st_mtime_ns]


class Model:
    """Weights and vocabulary of one GGUF file.

    Prediction heads are only loaded if `heads` is set. With a `pointer`, others have loaded it and
    will free it. Loading ends once `interrupt` is set.

    Raises:
        Cancelled: `interrupt` was set.
        UsageError: no such file, an unknown device, or an RPC server without a build for it.
        ModelError: not a GGUF that can generate text.
        EngineError: this build of llama.cpp cannot run on this machine.
        ResourceError: not enough memory.
        DSparkError: an RPC server cannot be reached.
    """

    def __init__(
        self,
        path: str | Path,
        options: ModelOptions,
        heads: bool = False,
        pointer: Any = None,
        on_progress: ProgressCallback = no_progress,
        interrupt: Event | None = None,
    ) -> None:
        self.header, self.has_heads = read_header(path), heads
        self.path = self.header.path
        if self.header.other_kind:
            raise _generates_nothing(self.path, self.header.other_kind)
        self.name, self.options = self.path.stem, options
        rpc.connect(options.rpc)
        self.notes: list[str] = []  # options that could not be honoured, one sentence each
        self.gpu_layers = self._wanted_gpu_layers()
        self.extra_buffers = trial.extra_buffers(options.extra_buffers)
        with held() as pressed:
            self.pointer: Any = pointer or self._load(on_progress, pressed, interrupt or Event())
            self._free: Callable[[], object] = _nothing
            if not pointer:
                self._free = weakref.finalize(self, llama_cpp.llama_model_free, self.pointer)
        is_model = kind_of(self.header) == "model"
        if is_model and llama_cpp.llama_model_has_encoder(self.pointer):
            self.close()
            kind = f"an embedding or encoder model ({self.header.architecture})"
            raise _generates_nothing(self.path, kind)
        self.vocabulary = Vocabulary(self.pointer, owner=self)
        self.size: int = llama_cpp.llama_model_size(self.pointer)  # bytes of the weights
        self.n_layer: int = llama_cpp.llama_model_n_layer(self.pointer)  # without the output layer
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self.pointer)  # tokens
        self.gpu_layers = min(self.gpu_layers, self.n_layer + 1)  # with the output layer
        # M-RoPE: a position has several axes.
        rope = llama_cpp.llama_model_rope_type(self.pointer)
        self.has_multi_rope: bool = rope == llama_cpp.LLAMA_ROPE_TYPE_MROPE

    def close(self) -> None:
        """Free the weights. No context of this model may be in use."""
        self._free()

    @property
    def place(self) -> str:
        """Where the weights are, for the user."""
        if not self.gpu_layers:
            return "CPU"
        names = "+".join(self._devices)
        whole = self.gpu_layers > self.n_layer
        return names if whole else f"{names} ({self.gpu_layers}/{self.n_layer + 1} layers) + CPU"

    def with_options(self, **changes: Any) -> Model:
        """The same weights for a context with other options; this model must outlive it."""
        other = copy.copy(self)
        other.options = self.options.model_copy(update=changes)
        return other

    def with_heads(self, options: ModelOptions) -> Model:
        """Its prediction heads, for their own contexts; this model must outlive them."""
        heads = self.with_options()
        heads.options, heads.notes, heads._free = options, [], _nothing
        heads.size = heads_size(self.header)
        return heads

    @property
    def _devices(self) -> Sequence[str]:
        """Names of the devices for layers on a GPU."""
        return self.options.devices or library.gpu_names(self.options.rpc)

    def _wanted_gpu_layers(self) -> int:
        wanted = self.options.n_gpu_layers
        if not library.can_offload(self.options.rpc) and wanted not in (None, "none", 0):
            self.notes.append(
                f"this build of llama-cpp-python has no GPU offload: n_gpu_layers {wanted} of "
                f"{self.path.name} has no effect; reinstall it with CMAKE_ARGS=-DGGML_CUDA=on "
                "or -DGGML_METAL=on"
            )
        return wanted_gpu_layers(self.options)

    def _load(self, on_progress: ProgressCallback, *ends: Event) -> Any:
        options = self.options
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = self.gpu_layers
        params.split_mode = _SPLIT_MODES[options.split_mode]
        params.main_gpu = options.main_gpu
        params.use_extra_bufts = self.extra_buffers
        params.load_mtp = self.has_heads
        overrides = overrides_of(overrides_for(self.header))
        params.kv_overrides = overrides
        if not options.mmap or options.mlock:  # else: auto, llama.cpp's own choice
            params.load_mode = options.mmap + 2 * options.mlock
        if options.mlock and not llama_cpp.llama_supports_mlock():
            self.notes.append("this build of llama-cpp-python cannot lock memory: mlock is off")
        if options.tensor_split:
            params.tensor_split = self._tensor_split()
        if wanted := placements(options, on_gpu=self.gpu_layers > 0):
            self._overrides = override_array(wanted)  # llama.cpp reads it while loading
            params.tensor_buft_overrides = ctypes.cast(self._overrides, ctypes.c_void_p)
        # By default llama.cpp would use the RPC servers of other models too.
        if options.devices or rpc.is_connected():
            params.devices = ctypes.cast(self._device_pointers(), ctypes.c_void_p)
        if not options.mmap:
            require_memory(size_on_disk(self.path), f"the weights of {self.path.name}")
        show, failed = partial(on_progress, f"loading {self.name}"), list[BaseException]()
        callback = _progress(show, failed, ends)
        params.progress_callback = callback
        with library.listening() as errors:
            model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if failed:
            raise failed[0]
        if not model and any(end.is_set() for end in ends):
            raise Cancelled
        if not model:
            raise _load_error(self.path, "; ".join(errors()))
        return model

    def _tensor_split(self) -> Any:
        most, count = llama_cpp.llama_max_devices(), len(self.options.tensor_split)
        if count > most:
            problem = f"tensor_split has {count} shares, but llama.cpp takes at most {most}"
            raise UsageError(problem, "Give one share for each GPU.")
        self._shares = (ctypes.c_float * most)(*self.options.tensor_split)
        return self._shares

    def _device_pointers(self) -> Any:
        known = library.device_pointers()
        for name in self._devices:
            if name not in known:
                raise UsageError(
                    f"unknown device {name!r}: this build of llama.cpp has {', '.join(known)}",
                    "Choose one of these, or reinstall llama-cpp-python for your GPU.",
                )
        pointers = [known[name] for name in self._devices]
        self._device_array = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)
        return self._device_array


def _progress(
    show: Callable[[float], object], failed: list[BaseException], ends: Sequence[Event]
) -> Any:
    """llama.cpp's progress callback: an event in `ends`, or an error (put in `failed`), ends it."""
    started = perf_counter()

    def on_progress(share: float, data: Any) -> bool:
        try:
            taken = perf_counter() - started
            if taken > _PATIENCE and share < 1.0:
                show(taken / max(share, 0.01) - taken)
        except BaseException as error:
            failed.append(error)
        return not failed and not any(end.is_set() for end in ends)

    return llama_cpp.llama_progress_callback(on_progress)


def overrides_of(values: Mapping[str, int]) -> Any:
    """Integer metadata overrides, as llama.cpp takes them; None for none."""
    if not values:
        return None
    made = (llama_cpp.llama_model_kv_override * (len(values) + 1))()  # an empty key ends it
    for one, (key, value) in zip(made, values.items(), strict=False):
        one.tag, one.key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, key.encode()
        one.value.val_i64 = value
    return made


def _nothing() -> None:
    """Frees nothing: the weights belong to another object."""


def _generates_nothing(path: Path, kind: str) -> ModelError:
    return ModelError(f"{path.name} is {kind}: it generates no text", "Choose another model.")


def _load_error(path: Path, log: str) -> DSparkError:
    # The last line only repeats that loading failed.
    reason = log.split("; ")[0].removeprefix("error loading model: ") or "unknown failure"
    problem = f"llama.cpp cannot load {path}: {reason}"
    if looks_like_memory(log):
        return ResourceError(problem, "Use a smaller model or fewer GPU layers.")
    return ModelError(
        problem,
        "Download it again, or use a newer llama-cpp-python if the architecture is new.",
    )
