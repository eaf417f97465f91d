"""Tensors that are not kept with their layer: ``--n-cpu-moe`` and ``--override-tensor``.

Experts are most of the bytes of a mixture of experts, and a token uses few of them: in main memory
they leave the GPU to attention and caches.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.errors import UsageError

MAIN_MEMORY = "CPU"
#: The experts of a layer, as llama.cpp's ``LLM_FFN_EXPS_REGEX`` names them.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override``."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def placements(options: ModelOptions, on_gpu: bool = True) -> list[tuple[str, str]]:
    """Regular expressions for tensor names, and the places of matches; the first match counts.

    Without layers on a GPU, the experts are in main memory anyway, repacked where that is faster.
    """
    parts = [one.rpartition("=") for one in options.override_tensor]
    asked = [(pattern, place) for pattern, _, place in parts]
    if not on_gpu or not options.n_cpu_moe:
        return asked
    if options.n_cpu_moe == "all":
        return [*asked, (_EXPERTS, MAIN_MEMORY)]
    layers = range(options.n_cpu_moe)
    return [*asked, *((rf"blk\.{layer}{_EXPERTS}", MAIN_MEMORY) for layer in layers)]


def place_of(tensor: str, wanted: Sequence[tuple[str, str]]) -> str | None:
    """Where `placements` put the tensor of this name; None: with its layer."""
    return next((place for pattern, place in wanted if re.search(pattern, tensor)), None)


def override_array(wanted: Sequence[tuple[str, str]]) -> Any:
    """`placements` as llama.cpp reads them; a `UsageError` for a place that this build lacks."""
    known = library.buffer_types()
    for _, place in wanted:
        if place not in known:
            raise UsageError(
                f"--override-tensor has unknown place {place!r}: this build of llama.cpp has "
                f"{', '.join(known)}",
                "Choose one of these.",
            )
    rows = [_Override(pattern.encode(), known[place]) for pattern, place in wanted]
    return (_Override * (len(rows) + 1))(*rows, _Override())
