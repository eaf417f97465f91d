"""A model of a few megabytes with random weights: enough to try a build of llama.cpp with.

It has the types of weights that have code of their own in llama.cpp, with rows that every such code
takes, and no vocabulary. Any bytes are weights of these types, as long as their scales are numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WIDTH, _INNER, _TOKENS, _HEADS, _LAYERS = 1024, 2048, 1024, 16, 1
_ALIGNMENT = 32
#: gguf.h's numbers of the kinds of metadata that are used here.
_UINT32, _FLOAT32, _STRING = 4, 6, 8


@dataclass(frozen=True)
class _Type:
    """A ggml type: its number, how blocks are laid out, how large its weights are at scale 1.

    Attributes:
        number: ``ggml_type``.
        weights: in a block.
        size: bytes of a block.
        scales: offsets of its float16 numbers.
        spread: root mean square of its weights where these are 1 and all other bytes random.

    """

    number: int
    weights: int
    size: int
    scales: tuple[int, ...]
    spread: float


_Q4_0 = _Type(2, 32, 18, (0,), 4.6)
_Q8_0 = _Type(8, 32, 34, (0,), 74.0)
_Q4_K = _Type(12, 256, 144, (0, 2), 300.0)
_Q6_K = _Type(14, 256, 210, (208,), 1370.0)

#: Of a layer: name -> (type, rows, columns).
_LAYER = {
    "attn_q": (_Q4_K, _WIDTH, _WIDTH),
    "attn_k": (_Q8_0, _WIDTH, _WIDTH),
    "attn_v": (_Q6_K, _WIDTH, _WIDTH),
    "attn_output": (_Q4_0, _WIDTH, _WIDTH),
    "ffn_gate": (_Q4_K, _INNER, _WIDTH),
    "ffn_up": (_Q8_0, _INNER, _WIDTH),
    "ffn_down": (_Q4_0, _WIDTH, _INNER),
}


def write_trial_model(path: Path) -> Path:
    """Write it; always the same bytes.

    Raises:
        OSError: there is no room.

    """
    tensors = _tensors()
    head, place = b"", 0
    for name, (shape, number, data) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", number, place)
        place += len(_padded(data))
    metadata = _metadata()
    start = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    with path.open("wb") as file:
        file.write(_padded(start + b"".join(metadata) + head))
        for _, _, data in tensors.values():
            file.write(_padded(data))
    return path


def _metadata() -> list[bytes]:
    whole = {
        "block_count": _LAYERS, "context_length": 256, "embedding_length": _WIDTH,
        "feed_forward_length": _INNER, "vocab_size": _TOKENS, "attention.head_count": _HEADS,
    }  # fmt: skip
    texts = {"general.architecture": "llama", "tokenizer.ggml.model": "none"}
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    return [
        *(_text(key) + struct.pack("<I", _STRING) + _text(text) for key, text in texts.items()),
        *(_text(f"llama.{key}") + struct.pack("<II", _UINT32, n) for key, n in whole.items()),
        _text(epsilon) + struct.pack("<If", _FLOAT32, 1e-5),
    ]


def _tensors() -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    """Name -> (shape, number of the type, bytes)."""
    rng = np.random.default_rng(0)
    wanted = {
        "token_embd": (_Q8_0, _TOKENS, _WIDTH),
        "output": (_Q6_K, _TOKENS, _WIDTH),
        **{f"blk.{k}.{name}": it for k in range(_LAYERS) for name, it in _LAYER.items()},
    }
    norms = ["output_norm"]
    norms += [f"blk.{k}.{name}_norm" for k in range(_LAYERS) for name in ("attn", "ffn")]
    ones = np.ones(_WIDTH, dtype="<f4").tobytes()
    return {
        **{f"{name}.weight": ((_WIDTH,), 0, ones) for name in norms},
        **{
            f"{name}.weight": ((columns, rows), kind.number, _weights(rng, kind, rows, columns))
            for name, (kind, rows, columns) in wanted.items()
        },
    }


def _weights(rng: np.random.Generator, kind: _Type, rows: int, columns: int) -> bytes:
    """Random ones whose rows have a length of about 1."""
    count = rows * columns // kind.weights
    blocks = rng.integers(0, 256, (count, kind.size), dtype=np.uint8)
    scale = np.array([columns**-0.5 / kind.spread], dtype="<f2").view(np.uint8)
    for place in kind.scales:
        blocks[:, place : place + 2] = scale
    return blocks.tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
