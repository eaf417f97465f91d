"""The llama.cpp library as a whole: features, versions and devices of this build."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import psutil
from llama_cpp._ggml import libggml
from llama_cpp.llama_cpp import _lib

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.log import listening as listening
from dspark_gguf.engine.log import set_command_log as set_command_log

with listening():  # a build for GPUs tells of them here, on stderr
    llama_cpp.llama_backend_init()


def can_offload(rpc: Sequence[str] = ()) -> bool:
    """Whether there is a GPU for layers, here or on one of the `rpc` servers.

    llama.cpp itself says yes for every build with RPC.
    """
    return bool(llama_cpp.llama_supports_gpu_offload() and gpu_names(rpc))


def features() -> dict[str, list[str]]:
    """What each backend was compiled with: ``{"CPU": ["AVX2", "FMA", ...]}``."""
    return parse_features(llama_cpp.llama_print_system_info().decode(errors="replace"))


def parse_features(text: str) -> dict[str, list[str]]:
    """Parse what llama.cpp prints: ``CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 800 |``."""
    out: dict[str, list[str]] = {}
    backend = ""
    for part in text.split("|"):
        if named := re.match(r"\s*(\w+) : (.*)", part):
            backend, part = named.groups()
        name, _, value = (word.strip() for word in part.partition("="))
        if value and value != "0":
            out.setdefault(backend, []).append(name if value == "1" else f"{name}={value}")
    return out


def versions() -> dict[str, str]:
    """The versions of llama.cpp and ggml, if the library has them."""
    known: dict[str, str] = {}
    for name, lib, symbol in (
        ("llama.cpp", _lib, "llama_version"),
        ("ggml", libggml, "ggml_version"),
        ("ggml commit", libggml, "ggml_commit"),
    ):
        if hasattr(lib, symbol):
            known[name] = bind(lib, symbol, ctypes.c_char_p)().decode(errors="replace")
    return known


def bind(lib: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    """The function `name` of a library, with the C types of its result and arguments."""
    function = getattr(lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


ggml = partial(bind, libggml)
_dev_count = ggml("ggml_backend_dev_count", ctypes.c_size_t)
_dev_get = ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_dev_name = ggml("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_description = ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_dev_type = ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_dev_buffer_type = ggml("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
_buffer_type_name = ggml("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_memory = ggml(
    "ggml_backend_dev_memory", None, ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2
)
_type_size = ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
_block_size = ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
#: ggml_backend_dev_type of ggml-backend.h.
_KINDS = {0: "CPU", 1: "GPU", 2: "integrated GPU", 3: "accelerator"}
#: How names of GPUs begin -> what builds llama.cpp for them; on a Mac, nothing is needed for Metal.
_BUILDS = {"CUDA": "-DGGML_CUDA=on", "ROCm": "-DGGML_HIP=on", "Vulkan": "-DGGML_VULKAN=on",
           "SYCL": "-DGGML_SYCL=on"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device:
    """A device that llama.cpp can use; memory in bytes."""

    name: str  # such as CUDA0, as --device takes it
    description: str  # the hardware's name
    kind: str  # CPU, GPU, integrated GPU or accelerator
    free: int
    total: int


#: Files with a container's memory limit and usage, and the line of ``memory.stat`` with the page
#: cache, which can be reclaimed: for cgroups version 2, and version 1.
_LIMITS = (
    ("memory.max", "memory.current", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "cache"),
)


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that this process can still use, within its container's limit."""
    free = int(psutil.virtual_memory().available)
    for limit, used, files in _LIMITS:
        with suppress(OSError, ValueError):  # no such limit, or "max"
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            lines = (groups / used).with_name("memory.stat").read_text().splitlines()
            left += sum(int(line.split()[1]) for line in lines if line.startswith(f"{files} "))
            free = min(free, max(left, 0))
    return free


def device_pointers() -> dict[str, int]:
    """The devices of this build: name -> llama.cpp's handle."""
    pointers = [_dev_get(k) for k in range(_dev_count())]
    return {_dev_name(pointer).decode(): pointer for pointer in pointers}


def buffer_types() -> dict[str, int]:
    """The buffer types in which devices keep weights: name, such as ``CPU`` -> handle."""
    pointers = [_dev_buffer_type(device) for device in device_pointers().values()]
    return {_buffer_type_name(pointer).decode(): pointer for pointer in pointers if pointer}


def devices() -> list[Device]:
    """All devices, with their current memory."""
    found = []
    for name, pointer in device_pointers().items():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
        kind = _KINDS.get(_dev_type(pointer), "other")
        # ggml reports all main memory as free.
        available = free_memory() if kind == "CPU" else free.value
        found.append(Device(name, _description(pointer), kind, available, total.value))
    return found


def _description(pointer: int) -> str:
    return str(_dev_description(pointer).decode(errors="replace"))


def gpu_names(rpc: Sequence[str] = ()) -> list[str]:
    """Names of GPUs; those of other machines only if their server is in `rpc`."""
    return [
        name
        for name, pointer in device_pointers().items()
        if _dev_type(pointer) in (1, 2)
        and (not name.startswith("RPC") or _description(pointer) in rpc)
    ]


def install_command(*flags: str) -> str:
    """What builds llama.cpp here: for the GPUs that it can use now, and with CMake `flags`."""
    names = gpu_names()
    now = [flag for begin, flag in _BUILDS.items() if any(n.startswith(begin) for n in names)]
    every = " ".join(dict.fromkeys([*now, *flags]))
    name = "llama-cpp-python"
    command = f"pip install --force-reinstall --no-cache-dir --no-binary {name} {name}"
    return f'CMAKE_ARGS="{every}" {command}' if every else command


def bytes_per_value(cache_type: str) -> float:
    """Size of one number in a KV cache of this type."""
    kind = type_number(cache_type)
    return float(_type_size(kind) / _block_size(kind))


def type_number(cache_type: str) -> int:
    """The ggml enum of a type name such as ``q8_0``."""
    if cache_type == "bf16":
        return 30  # GGML_TYPE_BF16 of ggml.h, which llama-cpp-python lacks
    return int(getattr(llama_cpp, f"GGML_TYPE_{cache_type.upper()}"))


def physical_cores() -> int:
    """Physical cores: two hyper-threads share the arithmetic units of a core.

    On Linux only those that this process may use; on Apple Silicon only the performance cores, as
    in llama.cpp, because the others slow down each pass. psutil knows neither.
    """
    if sys.platform == "linux":
        usable = os.sched_getaffinity(0)
        folder = Path("/sys/devices/system/cpu")
        paths = [folder / f"cpu{cpu}/topology/thread_siblings_list" for cpu in usable]
        return len({path.read_text() for path in paths if path.exists()}) or len(usable)
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.stdout.strip().isdigit():  # not so on Intel
            return int(found.stdout)
    return psutil.cpu_count(logical=False) or 1


def threads_of(options: ModelOptions) -> tuple[int, int]:
    """Threads for generating, and for prefill."""
    few = options.threads or physical_cores()
    return few, options.threads_batch or few


def machine() -> dict[str, Any]:
    """What the speed of a pass depends on besides the models: devices, cores, versions."""
    return {
        "devices": [[name, _description(each)] for name, each in device_pointers().items()],
        "cores": physical_cores(),
        "llama_cpp": llama_cpp.__version__,
    }
