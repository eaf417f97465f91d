"""Save a sequence's state to a file or RAM, so that it need not be read again.

llama.cpp writes and reads it. It does not notice a file of another model or a damaged number, and
ends the process if a file is too short: `fingerprint` and the caller's checksum guard against that.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.engine import library
from dspark_gguf.engine.model import file_stamp
from dspark_gguf.engine.protocol import TokenIds, common_prefix
from dspark_gguf.engine.rollback import Checkpoint, pointer_to
from dspark_gguf.engine.sequence import SequenceCache

#: Options that change where and how fast a model computes, but not what the cache holds.
_PLACEMENT = {
    "n_gpu_layers", "n_batch", "n_ubatch", "threads", "threads_batch", "mmap", "mlock",
    "kv_offload", "split_mode", "main_gpu", "tensor_split", "devices", "rpc",
}  # fmt: skip


def fingerprint(cache: SequenceCache) -> dict[str, Any]:
    """Plain values; a saved cache may only be loaded if they are the same."""
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
    """Write what the cache holds; an OSError if it could not be written completely."""
    _settle(cache)
    tokens = (llama_cpp.llama_token * cache.length)(*cache.tokens)
    with library.listening() as errors:
        written = llama_cpp.llama_state_seq_save_file(
            cache.pointer, os.fsencode(path), cache.sequence, tokens, cache.length
        )
    # Closing the file writes the last bytes, and llama.cpp ignores errors there.
    if not written or path.stat().st_size != written:
        raise OSError(errno.EIO, "; ".join(errors()) or "the file is incomplete", str(path))


def load_state(cache: SequenceCache, path: Path) -> int:
    """Replace what the cache holds with a complete file from `save_state`.

    Returns the number of tokens; 0 if llama.cpp refuses the file, which leaves the cache empty.
    """
    cache.trim(0)
    cache._unsure = True  # until `tokens` is right again
    tokens = (llama_cpp.llama_token * cache.n_ctx)()
    count = ctypes.c_size_t(0)
    with library.listening():
        file, room = os.fsencode(path), cache.n_ctx
        read = llama_cpp.llama_state_seq_load_file(
            cache.pointer, file, cache.sequence, tokens, room, ctypes.byref(count)
        )
    ids = list(tokens[: count.value])
    if read and _holds(cache, len(ids)) and all(0 <= token < cache.n_vocab for token in ids):
        cache.adopt(ids)
        cache._unsure = False
        return len(ids)
    _empty(cache)
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class SavedCache:
    """What a cache held: its tokens, llama.cpp's state, and checkpoints to roll back to."""

    tokens: npt.NDArray[np.int32]
    data: npt.NDArray[np.uint8]
    checkpoints: Sequence[Checkpoint]
    can_remove: bool  # whether any number of tokens can be dropped from the end

    @property
    def size(self) -> int:
        """Bytes in RAM."""
        return self.data.nbytes + sum(each.data.nbytes for each in self.checkpoints)

    def reusable(self, prompt: TokenIds) -> int:
        """Number of prompt tokens that need not be read again."""
        common = common_prefix(self.tokens, prompt)
        if self.can_remove or common == len(self.tokens):
            return common
        return max((each.length for each in self.checkpoints if each.length <= common), default=0)


def copy_state(cache: SequenceCache, most: int) -> SavedCache:
    """A copy of what a cache holds, in RAM; `MemoryError` if it takes more than `most` bytes."""
    _settle(cache)
    size = llama_cpp.llama_state_seq_get_size(cache.pointer, cache.sequence)
    if size > most:
        raise MemoryError
    data = np.empty(size, dtype=np.uint8)
    sequence = cache.sequence
    if llama_cpp.llama_state_seq_get_data(cache.pointer, pointer_to(data), size, sequence) != size:
        raise MemoryError  # llama.cpp tells of no other reason
    checkpoints = tuple(cache._rollback.checkpoints)
    return SavedCache(
        np.array(cache.tokens, dtype=np.int32), data, checkpoints, cache.rollback == "removal"
    )


def restore_state(cache: SequenceCache, saved: SavedCache) -> bool:
    """Replace what a cache holds with a copy, made of it or of another cache of its context.

    False if too few cells are free, which leaves the cache empty.
    """
    cache.trim(0)
    cache._unsure = True  # until `tokens` is right again
    with library.listening():
        data, size = pointer_to(saved.data), saved.data.nbytes
        read = llama_cpp.llama_state_seq_set_data(cache.pointer, data, size, cache.sequence)
    if read == size and _holds(cache, len(saved.tokens)):
        cache.adopt(saved.tokens.tolist())
        cache._rollback.checkpoints[:0] = [
            each for each in saved.checkpoints if each.length < cache.length
        ]
        cache._unsure = False
        return True
    _empty(cache)
    return False


def attends(cache: SequenceCache) -> bool:
    """Whether a pass goes over all cells of the context, including those of other sequences."""
    return not llama_cpp.llama_model_is_recurrent(llama_cpp.llama_get_model(cache.pointer))


def _settle(cache: SequenceCache) -> None:
    cache.flush()
    cache.reuse_prefix(cache.tokens)  # an interrupted pass may have left more in it


def _holds(cache: SequenceCache, length: int) -> bool:
    memory = llama_cpp.llama_get_memory(cache.pointer)
    return int(llama_cpp.llama_memory_seq_pos_max(memory, cache.sequence)) == length - 1


def _empty(cache: SequenceCache) -> None:
    cache.adopt([0])  # something to drop, whatever was read
    cache.trim(0)
