"""What the costs of a loaded model depend on: the key under which they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.model import file_stamp
from dspark_gguf.engine.sequence import SequenceCache

#: Options that do not affect the seconds of a pass, or whose resolved values are listed instead.
_OTHER = {"mmap", "mlock", "extra_buffers", "n_gpu_layers", "threads", "threads_batch", "n_ctx"}
#: Arguments of ``Llama`` that do affect them.
_OF_LLAMA = (
    "n_gpu_layers", "split_mode", "main_gpu", "tensor_split", "kv_overrides", "n_ctx", "n_batch",
    "n_ubatch", "n_threads", "n_threads_batch", "attention_type", "logits_all", "offload_kqv",
    "flash_attn", "op_offload", "swa_full", "lora_path", "lora_scale", "numa", "type_k", "type_v",
)  # fmt: skip


def option_facts(options: ModelOptions) -> dict[str, Any]:
    """How a model is loaded."""
    left = options.model_dump(mode="json", exclude=_OTHER)
    for name in ("rpc", "n_cpu_moe", "override_tensor"):
        if not left[name]:  # what was learned before these options existed stays valid
            del left[name]
    left["threads"] = list(library.threads_of(options))
    return {name: value for name, value in left.items() if not name.startswith(("rope_", "yarn_"))}


def model_facts(cache: SequenceCache) -> dict[str, Any]:
    """A model that this package loaded, and its context."""
    model = cache.model
    return {
        "file": file_stamp(model.path),
        "options": option_facts(model.options),
        "n_ctx": cache.n_ctx,
        "place": [model.place, model.gpu_layers],
        "extra_buffers": model.extra_buffers,
    }


def unloaded_facts(path: Path, options: ModelOptions) -> dict[str, Any]:
    """A draft that may never be loaded."""
    place = [options.n_gpu_layers, options.n_ctx, options.extra_buffers]
    return {"file": file_stamp(path), "options": option_facts(options), "place": place}


def llama_facts(llama: llama_cpp.Llama) -> dict[str, Any]:
    """A loaded ``Llama``."""
    state: dict[str, Any] = llama_cpp.Llama.__getstate__(llama)
    return {
        "file": file_stamp(Path(llama.model_path)),
        "options": {name: state.get(name) for name in _OF_LLAMA},
        "extra_buffers": getattr(llama, "extra_buffers", None),
    }
