"""Tiny block drafts (architecture ``dflash``), with random weights or constructed to be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_gguf import (
    Tiny,
    add_layer,
    add_shape,
    finish,
    weights_of,
    write_llama,
    write_vocabulary,
)

#: The id that stands where a token is to be guessed: `<|im_start|>`, which no text begins with.
MASK = 261
N_TOKENS = 263
SELECTOR_TOP_K = 4
TINY = Tiny()


@dataclass(frozen=True)
class Block:
    """What to write. `cycle`: for each token, the one that its Markov head says next."""

    size: int = 6
    layers: tuple[int, ...] = (0, 1)
    anchor_first: bool = True
    markov: bool = True
    confidence: bool = True
    causal: bool = False
    own_head: bool = False
    window: int = 0
    reduced: bool = False
    selector: bool = False
    sections: bool = False
    cycle: tuple[int, ...] = ()
    seed: int = 7


def embedding(width=64):
    """One direction for each token: nearly orthogonal, long, the same in targets and drafts."""
    return np.random.default_rng(99).standard_normal((N_TOKENS, width)).astype(np.float32)


def write_cycle_target(path: Path, successor, tiny: Tiny = TINY) -> Path:
    """A llama that says ``successor[token]`` after a token, whatever came before it."""
    return with_rule(write_llama(path, tiny), successor)


def with_rule(path: Path, successor, silent=("attn_output.weight", "ffn_down.weight")) -> Path:
    """The model in the file, made to say it: its layers (`silent`) add nothing."""
    reader = gguf.GGUFReader(path, "r+")
    vectors = embedding()
    output = np.zeros_like(vectors)
    np.add.at(output, successor, vectors)
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            tensor.data[:] = vectors
        elif tensor.name == "output.weight":
            tensor.data[:] = output
        elif tensor.name.endswith(silent):
            tensor.data[:] = 0.0
    reader.data.flush()
    return path


def copy_tokenizer(writer, source):
    """The vocabulary of another file; returns its size."""
    fields = gguf.GGUFReader(source).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    return len(fields["tokenizer.ggml.tokens"].data)


def write_dflash(
    path: Path,
    block: Block = Block(),
    tiny: Tiny = TINY,
    layers: int = 2,
    vocabulary_of: Path | None = None,
) -> Path:
    """A block draft for a target of the same width and vocabulary."""
    width, head = tiny.width, tiny.width // tiny.heads
    writer = gguf.GGUFWriter(path, "dflash")
    add_shape(writer, tiny, layers)
    writer.add_uint32("dflash.block_size", block.size)
    writer.add_array("dflash.target_layers", list(block.layers))
    writer.add_bool("dflash.sample_from_anchor", block.anchor_first)
    writer.add_bool("dflash.has_confidence_head", block.confidence)
    writer.add_bool("dflash.attention.causal", block.causal)
    if block.sections:
        writer.add_rope_dimension_sections([head // 2, 0, 0, 0])
    if block.window:
        writer.add_sliding_window(block.window)
        writer.add_sliding_window_pattern([k % 2 == 0 for k in range(layers)])
    if vocabulary_of is None:
        n_vocab = write_vocabulary(writer, tiny)
    else:
        n_vocab = copy_tokenizer(writer, vocabulary_of)
    writer.add_mask_token_id(MASK)
    draw = weights_of(tiny.but(seed=block.seed))
    ones = np.ones(width, dtype=np.float32)
    add = writer.add_tensor
    add("fc.weight", draw(width, len(block.layers) * width, scale=width**-0.5))
    add("enc.output_norm.weight", ones)
    add("output_norm.weight", ones)
    proposed = n_vocab // 2 if block.reduced else n_vocab
    if block.reduced:
        add("d2t", 2 * np.arange(proposed, dtype=np.int64))
    if block.own_head or block.reduced or block.cycle:
        add("token_embd.weight", draw(n_vocab, width))
        head_scale = 0.0 if block.cycle else 4 * width**-0.5
        add("output.weight", draw(proposed, width, scale=head_scale))
    if block.markov:
        add_heads(writer, block, draw, (n_vocab, proposed, width))
    if block.selector:
        add_selector(writer, draw, (n_vocab, width, layers))
    norms = {"attn_norm": width, "ffn_norm": width, "attn_q_norm": head, "attn_k_norm": head}
    for k in range(layers):
        add_layer(writer, tiny, draw, k, **norms)
    return finish(writer, path)


def add_heads(writer, block, draw, shape):
    """A Markov head, random or one that knows a cycle, and a confidence head."""
    n_vocab, proposed, width = shape
    if block.cycle:
        first, second = embedding(width), np.zeros((n_vocab, width), dtype=np.float32)
        np.add.at(second, list(block.cycle), first)
    else:
        first, second = draw(n_vocab, width, scale=0.5), draw(proposed, width, scale=0.5)
    writer.add_tensor("markov_w1.weight", first)
    writer.add_tensor("markov_w2.weight", second)
    if block.confidence:
        hidden = np.zeros(width) if block.cycle else draw(width, scale=0.1)
        writer.add_tensor(
            "conf_proj.weight", np.concatenate([hidden, sure_of(width)])[None].astype(np.float32)
        )
        writer.add_tensor("conf_proj.bias", np.array([0.5], dtype=np.float32))


def sure_of(width=64):
    """How the confidence head weighs the token before: hand-set."""
    return (np.arange(width) % 5 - 2).astype(np.float32) / 20


def add_selector(writer, draw, shape):
    """DFlash2: convolutions around attention and feed-forward, and a lattice of candidates."""
    n_vocab, width, layers = shape
    kernel, group, rank = 3, 16, 8
    writer.add_uint32("dflash.conv_kernel_size", kernel)
    writer.add_uint32("dflash.conv_group_size", group)
    writer.add_uint32("dflash.selector_rank", rank)
    writer.add_uint32("dflash.selector_top_k", SELECTOR_TOP_K)
    writer.add_tensor("selector_predecessor.weight", draw(n_vocab, rank))
    writer.add_tensor("selector_successor.weight", draw(n_vocab, rank))
    writer.add_tensor("selector_hidden.weight", draw(rank, width, scale=0.3))
    for k in range(layers):
        for name in ("attn_conv", "ffn_conv"):
            writer.add_tensor(f"blk.{k}.{name}_base", draw(2, kernel, width, scale=0.3))
            projected = 2 * kernel * width // group
            writer.add_tensor(f"blk.{k}.{name}_proj.weight", draw(projected, width, scale=0.05))
