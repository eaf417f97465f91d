"""The memory of a context in a file, so that a long conversation goes on without being read again.

llama.cpp writes and reads the file. It cannot tell whether a file belongs to the model it is given,
nor whether a number in it was damaged, and ends the process over a file that is too short:
`fingerprint` and the caller's checksum keep all such files from it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

import llama_cpp

from dspark_gguf.engine import library
from dspark_gguf.engine.sequence import SequenceCache

#: Where and how fast a model computes; the cache's contents and layout are the same.
_PLACEMENT = {
    "n_gpu_layers", "n_batch", "n_ubatch", "threads", "threads_batch", "mmap", "mlock",
    "kv_offload", "split_mode", "main_gpu", "tensor_split", "devices",
}  # fmt: skip


def fingerprint(cache: SequenceCache) -> dict[str, Any]:
    """Plain values that differ wherever a saved cache of another context must not be used."""
    file = cache.model.path.stat()
    return {
        "file": [cache.model.path.name, file.st_size, file.st_mtime_ns],
        "n_ctx": cache.n_ctx,
        "options": cache.model.options.model_dump(mode="json", exclude=_PLACEMENT | {"n_ctx"}),
        "llama_cpp": llama_cpp.__version__,
    }


def state_bytes(cache: SequenceCache) -> int:
    """Size of the file that `save_state` would write."""
    size: int = llama_cpp.llama_state_seq_get_size(cache.pointer, cache.sequence)
    return size + 4 * cache.length


def save_state(cache: SequenceCache, path: Path) -> None:
    """Write what the cache holds.

    Raises:
        OSError: it could not be written as a whole.

    """
    cache.flush()
    cache.keep(cache.tokens)  # an interrupted pass may have left more in it
    tokens = (llama_cpp.llama_token * cache.length)(*cache.tokens)
    with library.listening() as errors:
        written = llama_cpp.llama_state_seq_save_file(
            cache.pointer, os.fsencode(path), cache.sequence, tokens, cache.length
        )
    # The last bytes are written when the file is closed, where llama.cpp looks at no error.
    if not written or path.stat().st_size != written:
        raise OSError(errno.EIO, "; ".join(errors) or "the file is not whole", str(path))


def load_state(cache: SequenceCache, path: Path) -> int:
    """Make the cache hold what a whole file of `save_state` says; returns its tokens.

    A file that llama.cpp refuses leaves nothing in the cache: 0.

    What the cache held before is forgotten.
    """
    cache.trim(0)
    tokens = (llama_cpp.llama_token * cache.n_ctx)()
    count = ctypes.c_size_t(0)
    with library.listening():
        read = llama_cpp.llama_state_seq_load_file(
            cache.pointer,
            os.fsencode(path),
            cache.sequence,
            tokens,
            cache.n_ctx,
            ctypes.byref(count),
        )
    ids = list(tokens[: count.value])
    memory = llama_cpp.llama_get_memory(cache.pointer)
    last = llama_cpp.llama_memory_seq_pos_max(memory, cache.sequence)
    if read and last == len(ids) - 1 and all(0 <= token < cache.n_vocab for token in ids):
        cache.adopt(ids)
        return len(ids)
    cache.adopt([0])  # so that there is something to take back, whatever was read
    cache.trim(0)
    return 0
