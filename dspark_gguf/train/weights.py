"""The weights of a GGUF as numpy arrays."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from dspark_gguf.paths import shards

Array = npt.NDArray[np.float32]


class Weights:
    """Tensors of a GGUF by name, in float32, each read on access."""

    def __init__(self, path: Path) -> None:
        #: The first shard of a split file has all metadata.
        self.readers = [gguf.GGUFReader(part) for part in shards(path)]
        self._tensors = {each.name: each for reader in self.readers for each in reader.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        return np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in numpy's order, rows first; empty if there is no such tensor."""
        tensor = self._tensors.get(name)
        return () if tensor is None else tuple(int(size) for size in reversed(tensor.shape))

    @property
    def last_norm(self) -> Array:
        """Weights of the output norm, which LFM2 names after the embeddings."""
        return self[
            "output_norm.weight" if "output_norm.weight" in self else "token_embd_norm.weight"
        ]

    @property
    def head(self) -> Array:
        """The output matrix, which may be the embeddings."""
        return self["output.weight" if "output.weight" in self else "token_embd.weight"]


def neox(matrix: Array, heads: int) -> Array:
    """Reorder q or k: llama.cpp stores Llama's for adjacent pairs, ``dflash`` rotates halves."""
    out, inner = matrix.shape
    split = matrix.reshape(heads, out // heads // 2, 2, inner)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(out, inner))
