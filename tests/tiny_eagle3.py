"""Tiny EAGLE-3 drafts, and a Gemma 4 with its assistant, made to be right on the cycle of
``tiny_cycle``: each moves what the target knew of a token one token on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_cycle import (
    CYCLE,
    INNER,
    N_TOKENS,
    ONES,
    WIDTH,
    cycle_output,
    drawing,
    embedding,
    mover,
    successor,
)
from tests.tiny_gguf import Tiny, finish, write_vocabulary

N_HEADS, SIZE = 4, 16


@dataclass(frozen=True)
class Eagle:
    """What to write: right, or after a share of the tokens (`agreement`), or `random`; of every
    other token (`reduced`); with embeddings and an output of its own; `wide` in numbers; reading
    these layers."""

    random: bool = False
    agreement: float = 1.0
    reduced: bool = False
    own: bool = True
    wide: int = WIDTH
    layers: tuple[int, ...] = (0, 1, 2)
    padding: int = 0
    seed: int = 0


def _begin(path, arch, width, layers, heads=N_HEADS):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    return writer


def _layer(draw, adds, width=WIDTH):
    rows = width // N_HEADS
    return {
        "attn_norm": np.ones(width, np.float32), "ffn_norm": np.ones(width, np.float32),
        "attn_q": draw(width, width, scale=2.0), "attn_k": draw(2 * rows, width, scale=2.0),
        "attn_v": draw(2 * rows, width), "attn_output": adds * draw(width, width, scale=3.0),
        "ffn_gate": draw(INNER, width), "ffn_up": draw(INNER, width),
        "ffn_down": adds * draw(width, INNER, scale=2.0),
    }  # fmt: skip


def write_cycle_llama(path: Path, random=False, layers=3, agreement=1.0, seed=0) -> Path:
    """A llama that says the cycle, after a share of its tokens; `random`: something else, from what
    all layers add."""
    writer = _begin(path, "llama", WIDTH, layers)
    writer.add_rope_dimension_count(SIZE)
    write_vocabulary(writer, Tiny())
    output = cycle_output(agreement, seed)
    if random:
        output = drawing(9)(N_TOKENS, WIDTH, scale=4.0)
    writer.add_tensor("token_embd.weight", embedding())
    writer.add_tensor("output_norm.weight", ONES)
    writer.add_tensor("output.weight", output)
    for k in range(layers):
        for name, values in _layer(drawing(k + 1), np.float32(random)).items():
            writer.add_tensor(f"blk.{k}.{name}.weight", values)
    return finish(writer, path)


def _moving_feed_forward():
    """Adds the difference between a token of the cycle and the next."""
    vectors, strong = embedding(), 8.0
    gate = np.zeros((INNER, WIDTH), dtype=np.float32)
    down = np.zeros((WIDTH, INNER), dtype=np.float32)
    for k, token in enumerate(CYCLE):
        gate[k] = vectors[token] * strong / WIDTH
        down[:, k] = (vectors[successor(token)] - vectors[token]) / strong**2
    return {"ffn_gate": gate, "ffn_up": gate, "ffn_down": down}


def write_eagle3(path: Path, eagle: Eagle = Eagle()) -> Path:
    """Takes what enters the target's first layer, the token itself, and moves it one on.

    With the cycle's output that is the token after the next, which its row is to guess; its own
    state is where the guess after that begins. Any other pairing is wrong.
    """
    width, draw = eagle.wide, drawing(3)
    writer = _begin(path, "eagle3", width, 1)
    writer.add_rope_dimension_count(width // N_HEADS)
    writer.add_array("eagle3.target_layers", list(eagle.layers))
    writer.add_uint32("eagle3.target_hidden_size", WIDTH)
    writer.add_bool("eagle3.norm_before_residual", False)
    writer.add_bool("eagle3.norm_before_fc", False)
    write_vocabulary(writer, Tiny(padding=eagle.padding))
    layer = _layer(draw, np.float32(eagle.random), width)
    fuse, output = draw(width, 3 * WIDTH), draw(N_TOKENS, width, scale=4.0)
    if not eagle.random:
        eye = np.eye(WIDTH, dtype=np.float32)
        fuse = np.concatenate([eye, 0 * eye, 0 * eye], axis=1)
        layer |= _moving_feed_forward()
        output = cycle_output(eagle.agreement, eagle.seed)
    for name in ("attn_q", "attn_k", "attn_v"):  # over the token and the state
        layer[name] = np.concatenate([layer[name], layer[name][::-1]], axis=1)
    layer["attn_norm_2"] = np.ones(width, np.float32)
    writer.add_tensor("fc.weight", fuse)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    if eagle.reduced:
        kept = np.arange(1, N_TOKENS, 2, dtype=np.int64)
        writer.add_tensor("d2t", kept)
        output = output[kept]
    if eagle.own or eagle.reduced:
        writer.add_tensor("output.weight", output)
        tokens = embedding() if width == WIDTH else draw(N_TOKENS, width)
        pad = np.zeros((eagle.padding, width), dtype=np.float32)
        writer.add_tensor("token_embd.weight", np.concatenate([tokens, pad]))
    for name, values in layer.items():
        writer.add_tensor(f"blk.0.{name}.weight", values)
    return finish(writer, path)


#: The assistant's own width.
OWN = 48


def _begin_gemma(path, arch, width):
    writer = _begin(path, arch, width, 2)
    for key in ("key_length", "value_length", "key_length_swa", "value_length_swa"):
        writer.add_uint32(f"{arch}.attention.{key}", SIZE)
    for key in ("dimension_count", "dimension_count_swa"):
        writer.add_uint32(f"{arch}.rope.{key}", SIZE)
    writer.add_sliding_window(256)
    writer.add_array(f"{arch}.attention.sliding_window_pattern", [True, False])
    write_vocabulary(writer, Tiny())
    writer.add_tensor("rope_freqs.weight", np.ones(SIZE // 2, dtype=np.float32))
    return writer


def _gemma_layer(writer, k, width, draw, has_cache, adds=0):
    rows, ones = SIZE * N_HEADS, np.ones(width, dtype=np.float32)
    layer = {
        "attn_q": draw(rows, width), "attn_output": adds * draw(width, rows),
        "attn_q_norm": ONES[:SIZE], "ffn_gate": draw(INNER, width), "ffn_up": draw(INNER, width),
        "ffn_down": 0 * draw(width, INNER), "attn_norm": ones, "post_attention_norm": ones,
        "ffn_norm": ones, "post_ffw_norm": ones,
    }  # fmt: skip
    if has_cache:
        layer |= {"attn_k": draw(2 * SIZE, width), "attn_v": draw(2 * SIZE, width)}
        layer["attn_k_norm"] = ONES[:SIZE]
    else:
        layer["layer_output_scale"] = np.ones(1, dtype=np.float32)
    for name, values in layer.items():
        writer.add_tensor(f"blk.{k}.{name}.weight", values)


def write_gemma4(path: Path) -> Path:
    """A target that says the cycle, one of its layers with a sliding window."""
    writer = _begin_gemma(path, "gemma4", WIDTH)
    writer.add_uint32("gemma4.embedding_length_per_layer_input", 0)
    writer.add_tensor("token_embd.weight", embedding())
    writer.add_tensor("output.weight", cycle_output())
    writer.add_tensor("output_norm.weight", ONES)
    for k in range(2):
        _gemma_layer(writer, k, WIDTH, drawing(k), True)
    return finish(writer, path)


def write_assistant(path: Path, adds=0) -> Path:
    """Narrower than its target, it moves the state one token on; with `adds` it attends too."""
    writer = _begin_gemma(path, "gemma4-assistant", OWN)
    writer.add_nextn_predict_layers(2)
    writer.add_uint32("gemma4-assistant.embedding_length_out", WIDTH)
    basis, _ = np.linalg.qr(np.random.default_rng(8).standard_normal((OWN, OWN)))
    own = dict(zip(CYCLE, (basis * OWN**0.5).astype(np.float32), strict=False))
    vectors, says = embedding(), np.zeros((N_TOKENS, OWN), dtype=np.float32)
    for token in CYCLE:
        says[successor(token)] = own[token]
    inwards = sum(np.outer(own[t], vectors[t]) for t in CYCLE) / WIDTH @ mover()
    outwards = sum(np.outer(vectors[t], own[t]) for t in CYCLE) / OWN
    pairs = np.concatenate([0 * inwards, inwards], axis=1)
    writer.add_tensor("nextn.pre_projection.weight", pairs.astype(np.float32))
    writer.add_tensor("nextn.post_projection.weight", outwards.astype(np.float32))
    writer.add_tensor("token_embd.weight", says)
    writer.add_tensor("output_norm.weight", np.ones(OWN, dtype=np.float32))
    for k in range(2):
        _gemma_layer(writer, k, OWN, drawing(9 + k), False, adds)
    return finish(writer, path)
