"""libllama as a whole: its log, and what this build of it can do."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp._ggml import libggml

from dspark_gguf.visible import visible

# GGML_LOG_LEVEL_* of ggml.h; the binding's own table is off by one.
DEBUG_LEVEL, ERROR_LEVEL, CONTINUED = 1, 4, 5


class _Log:
    """Keeps llama.cpp quiet, and its last errors for our own messages."""

    def __init__(self) -> None:
        self.verbose = False
        self.errors: deque[str] = deque(maxlen=20)
        self._level = DEBUG_LEVEL
        # ctypes frees a callback without a reference; llama.cpp would then call into nothing.
        self._callback = llama_cpp.llama_log_callback(self._write)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == ERROR_LEVEL and line.strip():
            # Each line begins with the name of the C++ function that wrote it.
            self.errors.append(re.sub(r"^\w+: ", "", line.strip()))
        self._level = self._level if level == CONTINUED else level
        if self.verbose and self._level > DEBUG_LEVEL:
            sys.stderr.write(visible(line))


log = _Log()
llama_cpp.llama_backend_init()


@contextmanager
def listening() -> Iterator[deque[str]]:
    """Collect the errors that llama.cpp logs inside the block."""
    log.errors.clear()
    yield log.errors


def can_offload() -> bool:
    """Whether this build can put layers on a GPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def _ggml(name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(libggml, name)
    function.restype, function.argtypes = result, list(arguments)
    return function  # type: ignore[no-any-return]


_dev_count = _ggml("ggml_backend_dev_count", ctypes.c_size_t)
_dev_get = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_dev_name = _ggml("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_description = _ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_dev_type = _ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_type_size = _ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
_block_size = _ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)


def devices() -> dict[str, int]:
    """The devices of this build by name, with the pointer that llama.cpp knows each by."""
    pointers = [_dev_get(k) for k in range(_dev_count())]
    return {_dev_name(pointer).decode(): pointer for pointer in pointers}


def gpu_names() -> list[str]:
    """The devices that are not the CPU."""
    return [name for name, pointer in devices().items() if _dev_type(pointer) != 0]


def bytes_per_value(cache_type: str) -> float:
    """Size of one number in a KV cache of this type."""
    kind = type_number(cache_type)
    return float(_type_size(kind) / _block_size(kind))


def type_number(cache_type: str) -> int:
    """The ggml enum of a type name such as ``q8_0``."""
    if cache_type == "bf16":
        return 30  # GGML_TYPE_BF16 of ggml.h, which the binding leaves out
    return int(getattr(llama_cpp, f"GGML_TYPE_{cache_type.upper()}"))


def available_memory() -> int | None:
    """Bytes of main memory to be had without swapping, where the system tells; else None."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def physical_cores() -> int:
    """Cores that compute independently: two hyper-threads of one core share its arithmetic.

    On Apple Silicon only the performance cores, as llama.cpp does: the others slow each pass down.
    """
    if sys.platform == "linux":
        usable = os.sched_getaffinity(0)
        siblings = {
            path.read_text()
            for cpu in usable
            if (
                path := Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            ).exists()
        }
        return len(siblings) or len(usable)
    if sys.platform == "darwin":
        for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            found = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True)
            if found.returncode == 0 and found.stdout.strip().isdigit():
                return int(found.stdout)
    return max(1, (os.cpu_count() or 2) // 2)


def machine() -> dict[str, Any]:
    """What the speed of a pass depends on besides the models: devices, cores, versions."""
    found = [(_dev_name(pointer), _dev_description(pointer)) for pointer in devices().values()]
    return {
        "devices": [[text.decode(errors="replace") for text in texts] for texts in found],
        "cores": physical_cores(),
        "llama_cpp": llama_cpp.__version__,
    }
