"""A model of a few megabytes with random weights, for trying out a build of llama.cpp.

It has the weight types for which llama.cpp has special code, in rows long enough for it, and no
vocabulary. Any bytes are valid weights of these types if the scales are finite.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

_WIDTH, _INNER, _TOKENS = 1024, 2048, 1024
_ALIGNMENT = 32


class _Type(NamedTuple):
    """A ggml type; `spread` is the RMS of its weights, with scales of 1 and random other bytes."""

    number: int
    weights_per_block: int
    block_bytes: int
    scale_offsets: tuple[int, ...]
    spread: float


_Q4_0 = _Type(2, 32, 18, (0,), 4.6)
_Q8_0 = _Type(8, 32, 34, (0,), 74.0)
_Q4_K = _Type(12, 256, 144, (0, 2), 300.0)
_Q6_K = _Type(14, 256, 210, (208,), 1370.0)

#: Name -> (type, rows, columns).
_MATRICES = {
    "token_embd": (_Q8_0, _TOKENS, _WIDTH),
    "output": (_Q6_K, _TOKENS, _WIDTH),
    "blk.0.attn_q": (_Q4_K, _WIDTH, _WIDTH),
    "blk.0.attn_k": (_Q8_0, _WIDTH, _WIDTH),
    "blk.0.attn_v": (_Q6_K, _WIDTH, _WIDTH),
    "blk.0.attn_output": (_Q4_0, _WIDTH, _WIDTH),
    "blk.0.ffn_gate": (_Q4_K, _INNER, _WIDTH),
    "blk.0.ffn_up": (_Q8_0, _INNER, _WIDTH),
    "blk.0.ffn_down": (_Q4_0, _WIDTH, _INNER),
}
_NORMS = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
_METADATA: dict[str, str | int | float] = {
    "general.architecture": "llama", "tokenizer.ggml.model": "none", "llama.block_count": 1,
    "llama.context_length": 256, "llama.embedding_length": _WIDTH,
    "llama.feed_forward_length": _INNER, "llama.vocab_size": _TOKENS,
    "llama.attention.head_count": 16, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def write_trial_model(path: Path) -> Path:
    """Write it; always the same bytes."""
    rng = np.random.default_rng(0)
    ones = np.ones(_WIDTH, dtype="<f4").tobytes()
    tensors = [(name, (_WIDTH,), 0, ones) for name in _NORMS] + [
        (name, (columns, rows), kind.number, _weights(rng, kind, rows, columns))
        for name, (kind, rows, columns) in _MATRICES.items()
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(_METADATA))
    for key, value in _METADATA.items():
        head += _text(key) + _value(value)
    place = 0
    for name, shape, number, data in tensors:
        head += _text(f"{name}.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", number, place)
        place += len(_padded(data))
    with path.open("wb") as file:
        file.write(_padded(head))
        for *_, data in tensors:
            file.write(_padded(data))
    return path


def _weights(rng: np.random.Generator, kind: _Type, rows: int, columns: int) -> bytes:
    """Random weights whose rows have a length of about 1."""
    count = rows * columns // kind.weights_per_block
    blocks = rng.integers(0, 256, (count, kind.block_bytes), dtype=np.uint8)
    scale = np.array([columns**-0.5 / kind.spread], dtype="<f2").view(np.uint8)
    for place in kind.scale_offsets:
        blocks[:, place : place + 2] = scale
    return blocks.tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | float) -> bytes:
    """A metadata value, preceded by its type number from gguf.h."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    return struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<If", 6, value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
