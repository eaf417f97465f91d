"""Functions of libllama that are not in llama.h: C++ symbols, which may change.

Drafts that read the target's hidden states need them (llama.cpp's ``llama-ext.h``). They are looked
up when first used, so that everything else works with a build that lacks them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_bool, c_int32, c_uint32
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_cpp import _lib

from dspark_gguf.engine.library import bind, listening
from dspark_gguf.errors import EngineError

#: The version of llama-cpp-python that has all of them.
TRIED = "0.3.36"

_Floats = ctypes.POINTER(ctypes.c_float)

#: Name -> (result, further argument types, these mangled by Itanium's and MSVC's rules, MSVC's
#: result).
_SIGNATURES: dict[str, tuple[Any, list[Any], str, str, str]] = {
    "llama_set_embeddings_layer_inp": (None, [c_uint32, c_bool], "jb", "I_N", "X"),
    "llama_get_embeddings_layer_inp": (_Floats, [c_uint32], "j", "I", "PEAM"),
    "llama_set_embeddings_nextn": (None, [c_bool, c_bool], "bb", "_N1", "X"),
    "llama_get_embeddings_nextn": (_Floats, [], "", "", "PEAM"),
    "llama_get_embeddings_nextn_ith": (_Floats, [c_int32], "i", "H", "PEAM"),
    "llama_set_nextn_layer_offset": (None, [c_int32], "i", "H", "X"),
}
#: Functions for: a target's layer inputs, the states of all rows, that of one row, which head.
LAYERS, STATES, OWN_STATE, HEAD = (
    ("llama_set_embeddings_layer_inp", "llama_get_embeddings_layer_inp"),
    ("llama_set_embeddings_nextn", "llama_get_embeddings_nextn"),
    ("llama_get_embeddings_nextn_ith",),
    ("llama_set_nextn_layer_offset",),
)


def functions(*names: str) -> list[Any]:
    """The functions of these names; an `EngineError` if this build lacks one."""
    return list(map(function, names))


def function(name: str) -> Any:
    """One function; its first argument is a context."""
    result, arguments, *spelling = _SIGNATURES[name]
    for spelled in mangle(name, *spelling):
        if hasattr(_lib, spelled):
            return bind(_lib, spelled, result, ctypes.c_void_p, *arguments)
    raise EngineError(
        f"llama-cpp-python {llama_cpp.__version__} lacks {name}, which this draft needs",
        f"Install llama-cpp-python {TRIED}, or draft with a small model of the same family.",
    )


class LayerInputs:
    """The inputs of some layers in a target's last pass, `width` numbers per token."""

    def __init__(self, target: Any, layers: Sequence[int], width: int) -> None:
        set_layer, self._get = functions(*LAYERS)
        self._target, self._layers, self._width = target, layers, width
        with listening():
            for layer in layers:
                set_layer(target, layer, True)

    def rows(self, count: int) -> list[npt.NDArray[np.float32]]:
        """For each layer, inputs of the first `count` tokens ``[count, width]``; views."""
        pointers = (self._get(self._target, layer) for layer in self._layers)
        return [np.ctypeslib.as_array(each, (count, self._width)) for each in pointers]


def mangle(name: str, itanium: str, msvc: str, result: str) -> list[str]:
    """The symbols under which a build may export a function."""
    return [
        name,
        f"_Z{len(name)}{name}P13llama_context{itanium}",
        f"?{name}@@YA{result}PEAUllama_context@@{msvc}@Z",
    ]
