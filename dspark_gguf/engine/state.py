"""The memory of a context in a file, so that a long conversation need not be read again.

llama.cpp writes and reads the file. It notices neither a file of another model nor a damaged
number, and ends the process if a file is too short: `fingerprint` and the caller's checksum keep
such files from it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import llama_cpp

from dspark_gguf.engine import library
from dspark_gguf.engine.model import file_stamp
from dspark_gguf.engine.sequence import SequenceCache

#: Options that change where and how fast a model computes, but not what the cache holds.
_PLACEMENT = {
    "n_gpu_layers", "n_batch", "n_ubatch", "threads", "threads_batch", "mmap", "mlock",
    "kv_offload", "split_mode", "main_gpu", "tensor_split", "devices", "rpc",
}  # fmt: skip


def fingerprint(cache: SequenceCache) -> dict[str, Any]:
    """Plain values; a saved cache may be used only where they are the same."""
    return {
        "file": file_stamp(cache.model.path),
        "n_ctx": cache.n_ctx,
        "options": cache.model.options.model_dump(mode="json", exclude=_PLACEMENT | {"n_ctx"}),
        "llama_cpp": llama_cpp.__version__,
    }


def state_bytes(cache: SequenceCache) -> int:
    """Size of the file that `save_state` would write."""
    size = llama_cpp.llama_state_seq_get_size(cache.pointer, cache.sequence)
    return int(size) + 4 * cache.length


def save_state(cache: SequenceCache, path: Path) -> None:
    """Write what the cache holds; an OSError says that it could not be written completely."""
    cache.flush()
    cache.reuse_prefix(cache.tokens)  # an interrupted pass may have left more in it
    tokens = (llama_cpp.llama_token * cache.length)(*cache.tokens)
    with library.listening() as errors:
        written = llama_cpp.llama_state_seq_save_file(
            cache.pointer, os.fsencode(path), cache.sequence, tokens, cache.length
        )
    # Closing the file writes the last bytes, and llama.cpp ignores errors there.
    if not written or path.stat().st_size != written:
        raise OSError(errno.EIO, "; ".join(errors) or "the file is incomplete", str(path))


def load_state(cache: SequenceCache, path: Path) -> int:
    """Replace what the cache holds by a complete file of `save_state`.

    Returns the number of its tokens; 0 if llama.cpp refuses the file: the cache is empty then.
    """
    cache.trim(0)
    tokens = (llama_cpp.llama_token * cache.n_ctx)()
    count = ctypes.c_size_t(0)
    with library.listening():
        file, room = os.fsencode(path), cache.n_ctx
        read = llama_cpp.llama_state_seq_load_file(
            cache.pointer, file, cache.sequence, tokens, room, ctypes.byref(count)
        )
    ids = list(tokens[: count.value])
    memory = llama_cpp.llama_get_memory(cache.pointer)
    last = llama_cpp.llama_memory_seq_pos_max(memory, cache.sequence)
    if read and last == len(ids) - 1 and all(0 <= token < cache.n_vocab for token in ids):
        cache.adopt(ids)
        return len(ids)
    cache.adopt([0])  # something to take back, whatever was read
    cache.trim(0)
    return 0
