"""Check a GGUF file and read its header with ggml, without the weights."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

from dspark_gguf.engine.library import ggml, listening
from dspark_gguf.errors import ModelError, UsageError, reason_of
from dspark_gguf.paths import shards

#: Arrays up to this length are read; of longer ones, such as a vocabulary, only the length.
_SHORT = 1024

#: general.type -> what such a file is.
_TYPES = {
    "mmproj": "a projector of images or sound, which goes with a model",
    "adapter": "an adapter (LoRA), which goes with a model",
    "imatrix": "an importance matrix",
}
#: Diffusion models: they do not generate from left to right.
_DIFFUSION = {"dream", "llada", "llada-moe", "rnd1"}
_ENCODERS = {"t5", "t5encoder"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header lists it."""

    name: str  # such as blk.0.attn_q.weight
    type: str  # such as q8_0
    shape: tuple[int, ...]  # in ggml's order, the contiguous dimension first
    size: int  # bytes in the file

    @property
    def parameters(self) -> int:
        """Number of values."""
        return prod(self.shape)


class Count(int):
    """The length of an array that was not read."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, Count) and 0 <= value < 2**32


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


#: Types that readers rely on: keys, with or without the architecture; what they must be; a test.
_EXPECTED: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("general.architecture", "tokenizer.chat_template"), "text", lambda v: isinstance(v, str)),
    ((
        "general.file_type", "tokenizer.ggml.mask_token_id", "block_count", "embedding_length",
        "context_length", "expert_count", "attention.sliding_window", "block_size",
        "selector_top_k", "hyper_connection.count", "nextn_predict_layers",
        "embedding_length_out", "target_hidden_size",
    ), "a whole number", _is_whole),
    (("target_layers",), "whole numbers", _are_whole),
    (("attention.head_count", "attention.head_count_kv"), "whole numbers",
     lambda v: _is_whole(v) or _are_whole(v)),
    (("tokenizer.ggml.tokens",), "a list", lambda v: isinstance(v, list | Count)),
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of one file; a `ModelError` if a value has the wrong type."""

    path: Path
    version: int  # of the format
    metadata: dict[str, Any]  # a `Count` in place of a long array
    tensors: dict[str, Tensor]  # by name

    def __post_init__(self) -> None:
        """Check the types of the values that are read later."""
        for keys, what, fits in _EXPECTED:
            for key in keys:
                full = key if key in self.metadata else f"{self.architecture}.{key}"
                value = self.metadata.get(full)
                if value is not None and not fits(value):
                    problem = f"{self.path} is damaged: {full:.80} is {value!r:.80}, not {what}"
                    raise ModelError(problem, "Download it again.")

    @cached_property
    def architecture(self) -> str:
        """Such as ``llama``; ``unknown`` if the file does not say."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of this architecture: ``block_count`` means ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def heads(self) -> int:
        """Prediction heads (NextN blocks) in the file's block count, present or not."""
        count, blocks = self.get("nextn_predict_layers", 0), self.get("block_count", 0)
        return int(count) if count < blocks else 0

    @property
    def layers(self) -> int:
        """Layers of the model itself, without the heads."""
        return int(self.get("block_count", 0)) - self.heads

    @property
    def other_kind(self) -> str:
        """What the file is if it is not a model that generates text or drafts; else empty."""
        arch = self.architecture
        kind = "mmproj" if arch == "clip" else str(self.metadata.get("general.type"))
        if kind in _TYPES:
            return _TYPES[kind]
        if arch != "dflash":  # which has no tokens, and bidirectional attention
            if arch in _DIFFUSION:
                return f"a diffusion model ({arch})"
            two_way = arch in _ENCODERS or not self.get("attention.causal", True)
            if two_way or self.get("pooling_type"):
                return f"an embedding or encoder model ({arch})"
            if not {"tokenizer.ggml.model", "tokenizer.ggml.tokens"} & self.metadata.keys():
                return f"a model without a vocabulary ({arch})"
        return "" if self.tensors else "a vocabulary without weights"

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary; 0 without one."""
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        return int(tokens) if isinstance(tokens, Count) else len(tokens)


def readable_gguf(path: str | Path) -> Path:
    """`path`, if it is a GGUF file and all shards of a split model exist.

    Raises a `UsageError` if the file cannot be read, a `ModelError` if it is not a GGUF.
    """
    path = Path(os.path.expanduser(path))
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory", "Name the .gguf file in it.")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise UsageError(f"{path} is a device or a pipe", "Name a .gguf file.")
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        reason = "the link points to nothing" if path.is_symlink() else "no such file"
        raise UsageError(f"cannot read {path}: {reason}", "Check the path.") from None
    except (OSError, ValueError) as error:
        hint = "Check the path and its permissions."
        raise UsageError(f"cannot read {path}: {reason_of(error)}", hint) from None
    if head != b"GGUF":
        what = f"it begins with {head.decode('latin-1')!a}" if head else "it is empty"
        raise ModelError(f"{path} is not a GGUF model: {what}", "Download or convert it again.")
    parts = shards(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        problem = f"{path} is one of {len(parts)} parts of a model, but {missing[0]} is missing"
        raise ModelError(problem, "Download the missing parts.")
    if parts and path != parts[0]:
        problem = f"{path.name} is not the first part of its model"
        raise UsageError(problem, f"Name {parts[0].name}.")
    return path


def read_header(path: str | Path) -> Header:
    """Read the header of a GGUF, with the tensors of all shards.

    Raises a UsageError if there is no such file, a ModelError if it is not a complete GGUF.
    """
    path = readable_gguf(path)
    return _read(path, *((file.st_size, file.st_mtime_ns) for file in map(os.stat, shards(path))))


@lru_cache(maxsize=64)  # large vocabularies take a tenth of a second
def _read(path: Path, *stamps: tuple[int, int]) -> Header:
    tensors: dict[str, Tensor] = {}
    for part in shards(path)[1:]:
        with _open(part) as file:
            tensors |= _tensors(file)
    with _open(path) as file:
        keys = range(_ask("get_n_kv", ctypes.c_int64, file))
        metadata = {_text("get_key", file, k): _value(file, k) for k in keys}
        version = _ask("get_version", ctypes.c_uint32, file)
        return Header(path, version, metadata, _tensors(file) | tensors)


def read_tokens(path: str | Path) -> list[bytes]:
    """The text of each token in a GGUF's vocabulary; empty if there is none."""
    with _open(readable_gguf(path)) as file:
        key = _ask("find_key", ctypes.c_int64, file, b"tokenizer.ggml.tokens")
        count = _ask("get_arr_n", ctypes.c_size_t, file, key) if key >= 0 else 0
        # Bound once: some have 250,000 tokens.
        kinds = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
        get = ggml("gguf_get_arr_str", ctypes.c_char_p, *kinds)
        return [get(file, key, k) for k in range(count)]


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_init_from_file = ggml("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _Params)
_type_name = ggml("ggml_type_name", ctypes.c_char_p, ctypes.c_int)

#: gguf_type -> the end of the getter's name, and its C type.
_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8), 1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16), 3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32), 5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float), 7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64), 11: ("i64", ctypes.c_int64), 12: ("f64", ctypes.c_double),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


def _ask(name: str, result: Any, file: int, *arguments: int | bytes) -> Any:
    """Call a function of gguf.h whose first argument is the file."""
    kinds = [ctypes.c_char_p if isinstance(one, bytes) else ctypes.c_int64 for one in arguments]
    return ggml(f"gguf_{name}", result, ctypes.c_void_p, *kinds)(file, *arguments)


def _text(name: str, file: int, *arguments: int) -> str:
    return str(_ask(name, ctypes.c_char_p, file, *arguments).decode("utf-8", "replace"))


@contextmanager
def _open(path: Path) -> Iterator[int]:
    with listening() as errors:
        file = _init_from_file(os.fsencode(path), _Params(True, None))
    if not file:
        reason = "; ".join(errors()) or "the header cannot be read"
        raise ModelError(f"{path} is not a complete GGUF model: {reason}", "Download it again.")
    try:
        size, whole = path.stat().st_size, _whole_size(file)
        if size < whole:
            raise ModelError(
                f"{path} is not a complete GGUF model: it has {size:,} of {whole:,} bytes",
                "Wait for its download to end, or download it again.",
            )
        yield file
    finally:
        _ask("free", None, file)


def _whole_size(file: int) -> int:
    """Size of the complete file in bytes, according to its header."""
    ends = (
        _ask("get_tensor_offset", ctypes.c_size_t, file, k)
        + _ask("get_tensor_size", ctypes.c_size_t, file, k)
        for k in range(_ask("get_n_tensors", ctypes.c_int64, file))
    )
    last: int = max(ends, default=0)
    return last and last + _ask("get_data_offset", ctypes.c_size_t, file)


def _value(file: int, k: int) -> Any:
    kind = _ask("get_kv_type", ctypes.c_int, file, k)
    if kind == _STRING:
        return _text("get_val_str", file, k)
    if kind != _ARRAY:
        name, result = _SCALARS[kind]
        return _ask(f"get_val_{name}", result, file, k)
    if (count := _ask("get_arr_n", ctypes.c_size_t, file, k)) > _SHORT:
        return Count(count)
    kind = _ask("get_arr_type", ctypes.c_int, file, k)
    if kind == _STRING:
        return [_text("get_arr_str", file, k, j) for j in range(count)]
    data = _ask("get_arr_data", ctypes.c_void_p, file, k)
    return ctypes.cast(data, ctypes.POINTER(_SCALARS[kind][1]))[:count]


def _tensors(file: int) -> dict[str, Tensor]:
    found = {}
    for k in range(_ask("get_n_tensors", ctypes.c_int64, file)):
        name = _text("get_tensor_name", file, k)
        kind = _type_name(_ask("get_tensor_type", ctypes.c_int, file, k)).decode()
        shape = _ask("get_tensor_ne", ctypes.POINTER(ctypes.c_int64), file, k)[:4]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        size = _ask("get_tensor_size", ctypes.c_size_t, file, k)
        found[name] = Tensor(name, kind, tuple(shape), size)
    return found
