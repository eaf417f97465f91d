"""Initialise a draft, from layers of the target if they have the right shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dspark_gguf.train.network import Layer, Network
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.weights import Weights, neox

_PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
#: Architectures whose q and k are stored for rotary embeddings of adjacent pairs.
_PAIRS = ("llama",)


def new_network(
    shape: Shape, target: Weights, architecture: str, known: Tensor, mask: int, scale: Tensor
) -> Network:
    """A network with the target's output matrix and, if they fit, two of its layers."""
    embeddings = torch.from_numpy(target["token_embd.weight"])
    network = Network(shape, embeddings, known, mask)
    with torch.no_grad():
        network.scale.copy_(scale)
        network.output.copy_(torch.from_numpy(target.head)[known])
        network.output_norm.copy_(torch.from_numpy(target.last_norm))
        network.markov_in.copy_(_main_directions(embeddings, shape.rank))
        _begin_context(network)
        if all(_fits(target, k, shape) for k in shape.source_layers):
            for layer, k in zip(network.layers, shape.source_layers, strict=True):
                assert isinstance(layer, Layer)
                _take_over(layer, target, k, shape, architecture)
    return network


def _fits(target: Weights, k: int, shape: Shape) -> bool:
    """Whether a layer of the target has the draft's shape and no biases."""
    kv = target.shape(f"blk.{k}.attn_k.weight")
    inner = shape.heads * shape.head
    return (
        target.shape(f"blk.{k}.attn_q.weight") == (inner, shape.width)
        and target.shape(f"blk.{k}.ffn_up.weight") == (shape.feed_forward, shape.width)
        and all(f"blk.{k}.{name}.weight" in target for name in (*_PARTS, "attn_norm", "ffn_norm"))
        and not any(f"blk.{k}.{name}.bias" in target for name in _PARTS)
        and (inner % kv[0] == 0)
    )


def _take_over(layer: Layer, target: Weights, k: int, shape: Shape, architecture: str) -> None:
    """Copy a layer. Its attention norm is folded into the matrices: context tokens skip the norm.

    Each K and V head of the target is repeated for its query heads.
    """

    def part(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return target[f"blk.{k}.{name}.weight"]

    query, key, value = (part(f"attn_{name}") * part("attn_norm") for name in "qkv")
    groups = len(key) // shape.head
    if architecture in _PAIRS:
        query, key = neox(query, shape.heads), neox(key, groups)

    def repeated(matrix: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
        heads = matrix.reshape(groups, shape.head, -1).repeat(shape.kv_heads // groups, 0)
        return torch.from_numpy(heads.reshape(shape.kv_heads * shape.head, -1))

    layer.q.weight.copy_(torch.from_numpy(query))
    layer.k.weight.copy_(repeated(key))
    layer.v.weight.copy_(repeated(value))
    layer.o.weight.copy_(torch.from_numpy(part("attn_output")))
    for name in ("gate", "up", "down"):
        getattr(layer, name).weight.copy_(torch.from_numpy(part(f"ffn_{name}")))
    layer.ffn_norm.copy_(torch.from_numpy(part("ffn_norm")))
    for norm, name in ((layer.q_norm, "attn_q_norm"), (layer.k_norm, "attn_k_norm")):
        if f"blk.{k}.{name}.weight" in target:
            norm.copy_(torch.from_numpy(part(name)))


def _begin_context(network: Network) -> None:
    """Start with the inputs of the last of the target layers, plus a little of the others."""
    width, n = network.shape.width, len(network.shape.target_layers)
    network.fc.weight.normal_(0, 0.02 / n**0.5)
    network.fc.weight[:, -width:] += torch.eye(width)


def _main_directions(embeddings: Tensor, rank: int) -> Tensor:
    """Principal components of the embeddings: similar tokens start close in the Markov head."""
    centred = embeddings - embeddings.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    found = centred @ vectors[:, -rank:]
    if found.shape[1] < rank:
        found = torch.cat([found, torch.randn(len(found), rank - found.shape[1])], 1)
    return found / found.std(0).clamp_min(1e-6)
