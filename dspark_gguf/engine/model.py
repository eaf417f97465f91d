"""A loaded GGUF: its weights, what it says of itself, and where it sits."""

from __future__ import annotations

import copy
import ctypes
import os
import weakref
from pathlib import Path
from typing import Any

import llama_cpp

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.files import other_kind, readable_gguf
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import DSparkError, ModelError, ResourceError, UsageError
from dspark_gguf.paths import size_on_disk

_GIB = 1024**3
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_MEMORY_WORDS = ("allocat", "out of memory", "bad_alloc", "cannot mmap")


class Model:
    """Weights and vocabulary of one GGUF file.

    Args:
        path: the file.
        options: how to load it.

    Raises:
        UsageError: no such file, or an option this machine does not know.
        ModelError: not a GGUF that can generate text.
        EngineError: this build of llama.cpp cannot run on this machine.
        ResourceError: not enough memory.

    Attributes:
        notes: what was asked for and cannot be done, one sentence each.
        extra_buffers: whether weights may lie in extra buffers (``trial.py``).

    """

    def __init__(self, path: str | Path, options: ModelOptions) -> None:
        self.path = readable_gguf(path)
        self.options = options
        self.notes: list[str] = []
        self.gpu_layers = self._wanted_gpu_layers()
        self.extra_buffers = trial.extra_buffers(options.extra_buffers)
        self._model = self._load()
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, self._model)
        self.metadata = self._read_metadata()
        self._refuse_what_cannot_generate()
        self.vocabulary = Vocabulary(self._model, owner=self)
        self.size: int = llama_cpp.llama_model_size(self._model)
        self.n_layer: int = llama_cpp.llama_model_n_layer(self._model)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.gpu_layers = min(self.gpu_layers, self.n_layer + 1)

    @property
    def pointer(self) -> Any:
        """llama.cpp's model."""
        return self._model

    def close(self) -> None:
        """Free the weights. No context of this model may be in use."""
        self._free()

    @property
    def architecture(self) -> str:
        """Such as ``llama`` or ``qwen3``."""
        return self.metadata.get("general.architecture", "unknown")

    @property
    def name(self) -> str:
        """The file's name without its ending: what a user chose it by."""
        return self.path.stem

    @property
    def template(self) -> str | None:
        """The chat template in the file; None where there is none, or a blank one."""
        template = self.metadata.get("tokenizer.chat_template", "")
        return template if template.strip() else None

    @property
    def is_recurrent(self) -> bool:
        """Whether a state that each token changes is part of its memory."""
        return bool(
            llama_cpp.llama_model_is_recurrent(self._model)
            or llama_cpp.llama_model_is_hybrid(self._model)
        )

    @property
    def window(self) -> int:
        """Tokens that its sliding-window layers see; 0: it has none."""
        return int(llama_cpp.llama_model_n_swa(self._model))

    @property
    def has_multi_rope(self) -> bool:
        """Whether a position has several axes (M-RoPE)."""
        return bool(llama_cpp.llama_model_rope_type(self._model) == llama_cpp.LLAMA_ROPE_TYPE_MROPE)

    @property
    def place(self) -> str:
        """Where the weights sit, in words."""
        if not self.gpu_layers:
            return "CPU"
        names = "+".join(self.options.devices or library.gpu_names())
        whole = self.gpu_layers > self.n_layer
        return names if whole else f"{names} ({self.gpu_layers}/{self.n_layer + 1} layers) + CPU"

    def with_options(self, **changes: Any) -> Model:
        """The same weights, for a context with other options; this model must outlive it."""
        other = copy.copy(self)
        other.options = self.options.model_copy(update=changes)
        return other

    def _wanted_gpu_layers(self) -> int:
        wanted = self.options.n_gpu_layers
        if not library.can_offload() and wanted not in (None, "none", 0):
            self.notes.append(
                f"this build of llama-cpp-python has no GPU offload: n_gpu_layers {wanted} of "
                f"{self.path.name} is not done; reinstall it with CMAKE_ARGS=-DGGML_CUDA=on "
                "or -DGGML_METAL=on"
            )
        return wanted_gpu_layers(self.options)

    def _load(self) -> Any:
        options = self.options
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = self.gpu_layers
        params.split_mode = _SPLIT_MODES[options.split_mode]
        params.main_gpu = options.main_gpu
        params.use_extra_bufts = self.extra_buffers
        if not options.mmap or options.mlock:  # else: auto, llama.cpp's own choice
            params.load_mode = options.mmap + 2 * options.mlock
        if options.mlock and not llama_cpp.llama_supports_mlock():
            self.notes.append("this build of llama-cpp-python cannot lock memory: mlock is off")
        if options.tensor_split:
            params.tensor_split = self._tensor_split()
        if options.devices:
            params.devices = ctypes.cast(self._devices(), ctypes.c_void_p)
        if not options.mmap:
            require_memory(size_on_disk(self.path), f"the weights of {self.path.name}")
        with library.listening() as errors:
            model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise _load_error(self.path, "; ".join(errors))
        return model

    def _tensor_split(self) -> Any:
        most = llama_cpp.llama_max_devices()
        if len(self.options.tensor_split) > most:
            raise UsageError(
                f"at most {most} shares in tensor_split",
                str(len(self.options.tensor_split)),
                "give one share for each GPU",
            )
        self._shares = (ctypes.c_float * most)(*self.options.tensor_split)
        return self._shares

    def _devices(self) -> Any:
        known = library.devices()
        for name in self.options.devices:
            if name not in known:
                raise UsageError(
                    f"devices out of {', '.join(known)}",
                    repr(name),
                    "choose one of these, or reinstall llama-cpp-python for your GPU",
                )
        pointers = [known[name] for name in self.options.devices]
        self._device_array = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None)
        return self._device_array

    def _read_metadata(self) -> dict[str, str]:
        def read(function: Any, index: int) -> str:
            size = function(self._model, index, None, 0)
            buffer = ctypes.create_string_buffer(size + 1)
            function(self._model, index, buffer, size + 1)
            return buffer.value.decode("utf-8", "replace")

        return {
            read(llama_cpp.llama_model_meta_key_by_index, k): read(
                llama_cpp.llama_model_meta_val_str_by_index, k
            )
            for k in range(llama_cpp.llama_model_meta_count(self._model))
        }

    def _refuse_what_cannot_generate(self) -> None:
        kind = other_kind(self.metadata)
        encodes = llama_cpp.llama_model_has_encoder(self._model)
        if not kind and encodes and self.architecture != "dflash":
            kind = f"an embedding or encoder model ({self.architecture})"
        if kind:
            self.close()
            raise _generates_nothing(self.path, kind)


def wanted_gpu_layers(options: ModelOptions) -> int:
    """Layers that go to a GPU, 2**30 for all of them; 0 where this build cannot offload.

    Unless they were asked for, none go where a pass there failed its trial.
    """
    wanted = options.n_gpu_layers
    if not library.can_offload() or wanted == "none":
        return 0
    if wanted is None:
        return 2**30 if trial.gpu_runs() else 0
    return 2**30 if wanted in ("all", -1) else int(wanted)


def require_memory(needed: int, what: str) -> None:
    """Refuse what would make the system swap or kill us.

    Raises:
        ResourceError: with both sizes.

    """
    available = library.available_memory()
    if needed > available:
        raise ResourceError(
            f"{needed / _GIB:.1f} GiB of memory for {what}",
            f"{available / _GIB:.1f} GiB",
            "use a smaller model or context (--ctx-size), or a smaller cache type",
        )


def looks_like_memory(text: str) -> bool:
    """Whether llama.cpp's log speaks of a failed allocation."""
    return any(word in text.lower() for word in _MEMORY_WORDS)


def _generates_nothing(path: Path, kind: str) -> ModelError:
    return ModelError(
        "a model that generates text", f"{path.name}, {kind}", "choose a chat or base model"
    )


def _load_error(path: Path, log: str) -> DSparkError:
    # What the header says is plainer than llama.cpp's log: a part of a file, no model at all.
    try:
        header = read_header(path)
    except DSparkError as error:
        return error
    if header.other_kind:
        return _generates_nothing(path, header.other_kind)
    # The last of its lines only repeats that loading failed.
    reason = log.split("; ")[0].removeprefix("error loading model: ") or "an unknown failure"
    if looks_like_memory(log):
        return ResourceError(
            f"memory for {path.name}", reason, "use a smaller model or fewer GPU layers"
        )
    return ModelError(
        f"a complete GGUF model in {path}",
        reason,
        "download it again, or use a newer llama-cpp-python if the architecture is new",
    )
