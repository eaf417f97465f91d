"""Other quantizations of a GGUF, made by llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

from dspark_gguf.engine import library
from dspark_gguf.errors import EngineError

#: llama.cpp's numbers for whole-file quantizations (``llama_ftype``).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q4_K_M": 15}


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
            str(source).encode(), str(destination).encode(), ctypes.byref(params)
        )
    if status != 0:
        raise EngineError(
            f"a {file_type} copy of {source.name}",
            "; ".join(errors) or f"status {status} from llama.cpp",
            "check the free disk space",
        )
