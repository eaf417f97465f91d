"""Quantize a GGUF with llama.cpp."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import llama_cpp

from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import Header
from dspark_gguf.errors import EngineError
from dspark_gguf.signals import held

#: Name of a whole file's quantization, such as Q4_K_M -> llama.cpp's number (``llama_ftype``).
FILE_TYPES: dict[str, int] = {
    re.sub("LLAMA_FTYPE_(ALL_|MOSTLY_)?", "", name): number
    for name, number in vars(llama_cpp).items()
    if name.startswith("LLAMA_FTYPE_") and not name.endswith("GUESSED")
}
#: Bits of a weight in a row of whole blocks of 256, and in other rows: of the mixtures, the mean.
_BITS = {
    "F32": (32.0, 32.0), "F16": (16.0, 16.0), "Q4_0": (4.5, 4.5), "Q8_0": (8.5, 8.5),
    "Q2_K": (3.0, 4.5), "Q4_K_M": (4.9, 5.5),
}  # fmt: skip


@held()
def quantize(source: Path, destination: Path, file_type: str) -> None:
    """Write `source` to `destination` in another file type; an EngineError if llama.cpp fails."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = library.physical_cores()
    with library.listening() as errors:
        status = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(destination), ctypes.byref(params)
        )
    if status != 0:
        reason = "; ".join(errors()) or f"status {status} from llama.cpp"
        problem = f"cannot quantize {source.name} to {file_type}: {reason}"
        raise EngineError(problem, "Check the free disk space.")


def quantized_size(header: Header, file_type: str) -> int:
    """Estimated bytes of a model in another file type.

    Mixtures fall back to more bits in a row that is not a multiple of their blocks of 256, and the
    embeddings keep more.
    """
    blocks, others = _BITS[file_type]
    bits = 0.0
    for tensor in header.tensors.values():
        whole = tensor.shape[0] % 256 == 0
        if len(tensor.shape) == 1:
            each = 32.0
        elif tensor.name in ("token_embd.weight", "output.weight"):
            each = max(blocks, 6.6 if whole else 8.5)
        else:
            each = blocks if whole else others
        bits += each * tensor.parameters
    return int(bits / 8)
