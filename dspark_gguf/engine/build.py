"""What this build of llama.cpp is, and which devices it sees."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

import llama_cpp
from llama_cpp._ggml import libggml
from llama_cpp.llama_cpp import _lib

from dspark_gguf.engine import library

#: ggml_backend_dev_type of ggml-backend.h.
_KINDS = {0: "CPU", 1: "GPU", 2: "integrated GPU", 3: "accelerator"}


@dataclass(frozen=True, slots=True)
class Device:
    """What llama.cpp can compute on; memory in bytes."""

    name: str  # such as CUDA0, as --device takes it
    description: str  # the hardware's name
    kind: str  # CPU, GPU, integrated GPU or accelerator
    free: int
    total: int


def devices() -> list[Device]:
    """All devices, with their memory as it is now."""
    size = ctypes.POINTER(ctypes.c_size_t)
    ask = library._ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found = []
    for name, pointer in library.devices().items():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ask(pointer, ctypes.byref(free), ctypes.byref(total))
        kind = _KINDS.get(library._dev_type(pointer), "other")
        description = library._dev_description(pointer).decode(errors="replace")
        # ggml says that all main memory is free.
        available = library.available_memory() if kind == "CPU" else free.value
        found.append(Device(name, description, kind, available, total.value))
    return found


def features() -> dict[str, list[str]]:
    """What each backend was compiled with: ``{"CPU": ["AVX2", "FMA", ...]}``."""
    return parsed(llama_cpp.llama_print_system_info().decode(errors="replace"))


def parsed(text: str) -> dict[str, list[str]]:
    """`features` of what llama.cpp prints: ``CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 800 |``."""
    out: dict[str, list[str]] = {}
    backend = ""
    for part in filter(None, (part.strip() for part in text.split("|"))):
        named = re.match(r"(\w+) : (.*)", part)
        if named:
            backend, part = named[1], named[2]
        name, _, value = (word.strip() for word in part.partition("="))
        if value and value != "0":
            out.setdefault(backend, []).append(name if value == "1" else f"{name}={value}")
    return out


def versions() -> dict[str, str]:
    """The versions of llama.cpp and ggml, as far as the library has them."""
    known: dict[str, str] = {}
    for name, lib, symbol in (
        ("llama.cpp", _lib, "llama_version"),
        ("ggml", libggml, "ggml_version"),
        ("ggml commit", libggml, "ggml_commit"),
    ):
        function: Any = getattr(lib, symbol, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            known[name] = function().decode(errors="replace")
    return known
