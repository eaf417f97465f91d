"""The entry points of libllama that llama.h does not promise: C++ names, and none for long.

Draft models that read the target's layers need them (llama.cpp's ``llama-ext.h``). They are looked
up when first asked for, so that everything else works with a build that lacks them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
from llama_cpp.llama_cpp import _lib

from dspark_gguf.errors import EngineError

#: The version of llama-cpp-python that all of this was tried with.
TRIED = "0.3.36"

_Context = _Model = ctypes.c_void_p
_Floats = ctypes.POINTER(ctypes.c_float)

#: Name -> (result, argument types, Itanium suffix, MSVC suffix).
_SIGNATURES: dict[str, tuple[Any, list[Any], str, str]] = {
    "llama_set_embeddings_layer_inp": (
        None, [_Context, ctypes.c_uint32, ctypes.c_bool], "P13llama_contextjb",
        "XPEAUllama_context@@I_N@Z",
    ),
    "llama_get_embeddings_layer_inp": (
        _Floats, [_Context, ctypes.c_uint32], "P13llama_contextj", "PEAMPEAUllama_context@@I@Z",
    ),
    "llama_set_embeddings_nextn": (
        None, [_Context, ctypes.c_bool, ctypes.c_bool], "P13llama_contextbb",
        "XPEAUllama_context@@_N1@Z",
    ),
    "llama_get_embeddings_nextn": (
        _Floats, [_Context], "P13llama_context", "PEAMPEAUllama_context@@@Z",
    ),
}  # fmt: skip


def mangled(name: str, itanium: str, msvc: str) -> list[str]:
    """The names under which a build may export a function."""
    return [name, f"_Z{len(name)}{name}{itanium}", f"?{name}@@YA{msvc}"]


def function(name: str) -> Any:
    """One of these entry points.

    Raises:
        EngineError: this build has no such symbol.

    """
    result, arguments, itanium, msvc = _SIGNATURES[name]
    for spelled in mangled(name, itanium, msvc):
        found = getattr(_lib, spelled, None)
        if found is not None:
            found.restype, found.argtypes = result, arguments
            return found
    raise EngineError(
        f"a build of llama.cpp with {name}, which block drafts need",
        f"llama-cpp-python {llama_cpp.__version__} without it",
        f"install llama-cpp-python {TRIED}, or draft with a small model of the target's family",
    )


def require_all() -> None:
    """Refuse a build that lacks one of them.

    Raises:
        EngineError: naming the symbol and the version that has it.

    """
    for name in _SIGNATURES:
        function(name)
