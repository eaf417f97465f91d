"""Other quantizations of a GGUF, made by llama.cpp."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp

from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import Header
from dspark_gguf.errors import EngineError

#: llama.cpp's numbers for whole-file quantizations (``llama_ftype``).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q4_K_M": 15}

#: Bits of a weight in a row of whole blocks of 256, and in another one.
_BITS = {
    "F32": (32.0, 32.0), "F16": (16.0, 16.0), "Q4_0": (4.5, 4.5), "Q8_0": (8.5, 8.5),
    "Q2_K": (3.0, 4.5), "Q4_K_M": (4.9, 5.5),
}  # fmt: skip


def quantize(source: Path, destination: Path, file_type: str) -> None:
    """Write `source` as `destination` with another quantization; takes seconds per 100 MB.

    Raises:
        EngineError: llama.cpp could not.

    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = library.physical_cores()
    with library.listening() as errors:
        status = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(destination), ctypes.byref(params)
        )
    if status != 0:
        raise EngineError(
            f"a {file_type} copy of {source.name}",
            "; ".join(errors) or f"status {status} from llama.cpp",
            "check the free disk space",
        )


def quantized_size(header: Header, file_type: str) -> int:
    """Bytes that a quantization of a model will take, about.

    Q2_K is a mixture of about 3 bits; a row that is no multiple of its blocks of 256 falls back to
    4.5 bits, and the embeddings keep more.
    """
    bits = 0.0
    for tensor in header.tensors.values():
        whole = tensor.shape[0] % 256 == 0
        if len(tensor.shape) == 1:
            each = 32.0
        elif tensor.name in ("token_embd.weight", "output.weight"):
            each = max(_BITS[file_type][0], 6.6 if whole else 8.5)
        else:
            each = _BITS[file_type][0 if whole else 1]
        bits += each * tensor.parameters
    return int(bits / 8)
