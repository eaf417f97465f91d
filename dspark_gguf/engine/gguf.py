"""What a GGUF file says of itself: its header, read by ggml without the weights."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from llama_cpp._ggml import libggml

from dspark_gguf.engine import library
from dspark_gguf.engine.files import other_kind, readable_gguf
from dspark_gguf.errors import ModelError
from dspark_gguf.paths import shards

#: Arrays up to this length are read; a vocabulary is only counted.
_SHORT = 1024


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header lists it.

    Attributes:
        name: such as ``blk.0.attn_q.weight``.
        type: such as ``q8_0``.
        shape: ggml's order, the contiguous dimension first.
        size: bytes in the file.

    """

    name: str
    type: str
    shape: tuple[int, ...]
    size: int

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of one file.

    Attributes:
        path: the file.
        version: of the format.
        metadata: key -> value; of a long array only `Count`.
        tensors: by name.

    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Refuse what no model says of itself."""
        _require_kinds(self)

    @cached_property
    def architecture(self) -> str:
        """Such as ``llama``; ``unknown`` where the file does not say."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of this architecture: ``block_count`` means ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def other_kind(self) -> str:
        """What it is instead of a model that generates text or drafts; else empty."""
        if kind := other_kind(self.metadata):
            return kind
        return "" if self.tensors else "a vocabulary without weights"

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary; 0 without one."""
        tokens = self.metadata.get("tokenizer.ggml.tokens", ())
        return int(tokens) if isinstance(tokens, Count) else len(tokens)


class Count(int):
    """The length of an array that was not read."""


#: What readers rely on, by key or by what follows the architecture in it.
_TEXT = ("general.architecture", "tokenizer.chat_template")
_WHOLE = (
    "general.file_type", "tokenizer.ggml.mask_token_id", "block_count", "embedding_length",
    "context_length", "expert_count", "attention.sliding_window", "block_size", "selector_top_k",
    "hyper_connection.count",
)  # fmt: skip
_WHOLES = ("target_layers",)
_WHOLE_OR_MANY = ("attention.head_count", "attention.head_count_kv")


def _require_kinds(header: Header) -> None:
    """Refuse metadata of other kinds than its readers expect.

    Raises:
        ModelError: naming the key.

    """

    def require(keys: Sequence[str], what: str, fits: Callable[[Any], bool]) -> None:
        for key in keys:
            full = key if key in header.metadata else f"{header.architecture}.{key}"
            value = header.metadata.get(full)
            if value is not None and not fits(value):
                raise ModelError(
                    f"{what} for {full[:80]} in {header.path}",
                    repr(value)[:80],
                    "download it again",
                )

    require(_TEXT, "text", lambda value: isinstance(value, str))
    require(_WHOLE, "a whole number", _is_whole)
    require(_WHOLES, "whole numbers", _are_whole)
    require(_WHOLE_OR_MANY, "whole numbers", lambda value: _is_whole(value) or _are_whole(value))
    require(("tokenizer.ggml.tokens",), "a list", lambda value: isinstance(value, list | Count))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, Count) and 0 <= value < 2**32


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def read_header(path: str | Path) -> Header:
    """Read the header of a GGUF; of a split one, with the tensors of all its parts.

    Raises:
        UsageError: no such file.
        ModelError: no GGUF, a damaged one, or only the beginning of one.

    """
    path = readable_gguf(path)
    tensors: dict[str, Tensor] = {}
    for part in shards(path)[1:]:
        with _opened(part) as file:
            tensors |= _tensors(file)
    with _opened(path) as file:
        return Header(
            path,
            _ask("version", ctypes.c_uint32, file),
            {
                _text(_ask("key", ctypes.c_char_p, file, k)): _value(file, k)
                for k in range(_ask("n_kv", ctypes.c_int64, file))
            },
            _tensors(file) | tensors,
        )


def read_tokens(path: str | Path) -> list[bytes]:
    """How the vocabulary of a GGUF spells each of its tokens; empty without one.

    Raises:
        UsageError, ModelError: as `read_header`.

    """
    spelled = libggml.gguf_get_arr_str  # bound once: some have 250,000 tokens
    spelled.restype = ctypes.c_char_p
    spelled.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t]
    with _opened(readable_gguf(path)) as file:
        key = _find_key(file, b"tokenizer.ggml.tokens")
        if key < 0:
            return []
        return [spelled(file, key, k) for k in range(_ask("arr_n", ctypes.c_size_t, file, key))]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with library.listening() as errors:
        file = _gguf_init_from_file(os.fsencode(path), _Params(True, None))
    if not file:
        raise ModelError(
            f"a complete GGUF model in {path}",
            "; ".join(errors) or "a header that cannot be read",
            "download it again",
        )
    try:
        _require_whole(file, path)
        yield file
    finally:
        _gguf_free(file)


def _require_whole(file: int, path: Path) -> None:
    """Refuse the beginning of a file: its header says how long all of it is."""
    ends = (
        _ask("tensor_offset", ctypes.c_size_t, file, k)
        + _ask("tensor_size", ctypes.c_size_t, file, k)
        for k in range(_ask("n_tensors", ctypes.c_int64, file))
    )
    size, least = path.stat().st_size, max(ends, default=0)
    least += _ask("data_offset", ctypes.c_size_t, file) if least else 0
    if size < least:
        raise ModelError(
            f"a complete GGUF model in {path}", f"{size:,} of its {least:,} bytes",
            "wait for its download to end, or download it again",
        )  # fmt: skip


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_gguf_init_from_file = libggml.gguf_init_from_file
_gguf_init_from_file.restype = ctypes.c_void_p
_gguf_init_from_file.argtypes = [ctypes.c_char_p, _Params]
_gguf_free = libggml.gguf_free
_gguf_free.restype, _gguf_free.argtypes = None, [ctypes.c_void_p]
_find_key = libggml.gguf_find_key
_find_key.restype, _find_key.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p]
_type_name = libggml.ggml_type_name
_type_name.restype, _type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]

#: gguf_type -> the end of the getter's name, and its C type.
_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8), 1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16), 3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32), 5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float), 7: ("bool", ctypes.c_bool), 8: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64), 11: ("i64", ctypes.c_int64), 12: ("f64", ctypes.c_double),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


def _ask(name: str, result: Any, *arguments: Any) -> Any:
    """Call one of gguf.h's getters: the file first, then indices."""
    function = getattr(libggml, f"gguf_get_{name}")
    function.restype = result
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * (len(arguments) - 1)]
    return function(*arguments)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _value(file: int, k: int) -> Any:
    kind = _ask("kv_type", ctypes.c_int, file, k)
    if kind != _ARRAY:
        name, result = _SCALARS[kind]
        value = _ask(f"val_{name}", result, file, k)
        return _text(value) if kind == _STRING else value
    count = _ask("arr_n", ctypes.c_size_t, file, k)
    if count > _SHORT:
        return Count(count)
    kind = _ask("arr_type", ctypes.c_int, file, k)
    if kind == _STRING:
        return [_text(_ask("arr_str", ctypes.c_char_p, file, k, j)) for j in range(count)]
    pointer = ctypes.cast(
        _ask("arr_data", ctypes.c_void_p, file, k), ctypes.POINTER(_SCALARS[kind][1])
    )
    return [pointer[j] for j in range(count)]


def _tensors(file: int) -> dict[str, Tensor]:
    found = (_tensor(file, k) for k in range(_ask("n_tensors", ctypes.c_int64, file)))
    return {tensor.name: tensor for tensor in found}


def _tensor(file: int, k: int) -> Tensor:
    shape = list(_ask("tensor_ne", ctypes.POINTER(ctypes.c_int64), file, k)[:4])
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return Tensor(
        _text(_ask("tensor_name", ctypes.c_char_p, file, k)),
        _text(_type_name(_ask("tensor_type", ctypes.c_int, file, k))),
        tuple(shape),
        _ask("tensor_size", ctypes.c_size_t, file, k),
    )
