"""Tiny GGUFs with every kind of memory: a sliding window, recurrent states, hybrids of both."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.tiny_gguf import Tiny, finish, vocabulary, weights_of, write_llama, write_mamba
from tests.tiny_gguf import write_vocabulary as write_words

#: Tokens that the sliding window of `write_gemma3` holds.
WINDOW = 24
_LONG = Tiny(context=1024)


class _Writer:
    """A GGUF in the making: tensors by name, drawn from one generator."""

    def __init__(self, path: Path, architecture: str, tiny: Tiny, layers: int) -> None:
        self.path, self.tiny, self.layers = path, tiny, layers
        self.file = gguf.GGUFWriter(path, architecture)
        self.file.add_block_count(layers)
        self.file.add_context_length(tiny.context)
        self.file.add_embedding_length(tiny.width)
        self.file.add_feed_forward_length(2 * tiny.width)
        self._draw = weights_of(tiny)

    def words(self) -> None:
        """The vocabulary, embeddings and the output."""
        write_words(self.file, self.tiny)
        size, width = len(vocabulary(self.tiny)), self.tiny.width
        self.matrix("token_embd", width, size, scale=1.0)
        self.matrix("output", width, size, scale=4.0 * width**-0.5)

    def matrix(self, name: str, columns: int, *shape: int, scale: float | None = None) -> None:
        """`columns` in, ``shape[0]`` out; more dimensions stand before them."""
        weights = self._draw(*reversed(shape), columns, scale=scale or columns**-0.5)
        self.file.add_tensor(f"{name}.weight", weights)

    def ones(self, *names: str, size: int | None = None) -> None:
        """Weights of norms."""
        for name in names:
            values = np.ones(size or self.tiny.width, dtype=np.float32)
            self.file.add_tensor(f"{name}.weight", values)

    def vector(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> None:
        """Numbers between two bounds, whose names say all."""
        size = int(np.prod(shape))
        values = np.linspace(low, high, size, dtype=np.float32).reshape(shape)
        self.file.add_tensor(name, values)

    def feed_forward(self, block: str) -> None:
        """A gated feed-forward part."""
        width = self.tiny.width
        self.matrix(f"{block}.ffn_gate", width, 2 * width)
        self.matrix(f"{block}.ffn_up", width, 2 * width)
        self.matrix(f"{block}.ffn_down", 2 * width, width)

    def attention(self, block: str, heads: int, kv_heads: int, gated: bool = False) -> None:
        """Projections of an attention, with norms of queries and keys."""
        width = self.tiny.width
        head = width // heads
        self.matrix(f"{block}.attn_q", width, width * (1 + gated))
        self.matrix(f"{block}.attn_k", width, head * kv_heads)
        self.matrix(f"{block}.attn_v", width, head * kv_heads)
        self.matrix(f"{block}.attn_output", width, width)
        self.ones(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=head)

    def done(self) -> Path:
        """Write it."""
        return finish(self.file, self.path)


def write_gemma3(path: Path, tiny: Tiny = _LONG) -> Path:
    """Every other layer sees the last `WINDOW` tokens only."""
    writer = _Writer(path, "gemma3", tiny, layers=4)
    file, width, heads = writer.file, tiny.width, tiny.heads
    file.add_head_count(heads)
    file.add_head_count_kv(2)
    file.add_key_length(width // heads)
    file.add_value_length(width // heads)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_sliding_window(WINDOW)
    file.add_sliding_window_pattern(2)
    writer.words()
    writer.ones("output_norm")
    for k in range(writer.layers):
        block = f"blk.{k}"
        writer.attention(block, heads, 2)
        writer.feed_forward(block)
        names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        writer.ones(*(f"{block}.{name}" for name in names))
    return writer.done()


def write_rwkv7(path: Path, tiny: Tiny = _LONG) -> Path:
    """A recurrent model without attention."""
    writer = _Writer(path, "rwkv7", tiny, layers=2)
    # llama.cpp computes heads of 64 and reads beyond smaller ones.
    file, width, rank, head = writer.file, tiny.width, 8, 64
    file.add_head_count(0)
    file.add_layer_norm_eps(1e-5)
    file.add_wkv_head_size(head)
    file.add_decay_lora_rank(rank)
    file.add_iclr_lora_rank(rank)
    file.add_value_residual_mix_lora_rank(rank)
    file.add_gate_lora_rank(rank)
    file.add_token_shift_count(2)
    writer.words()
    for name in ("token_embd_norm", "output_norm"):
        _layer_norm(writer, name)
    for k in range(writer.layers):
        block = f"blk.{k}"
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            _layer_norm(writer, f"{block}.{name}")
        for name in "wavg":
            writer.matrix(f"{block}.time_mix_{name}1", width, rank)
            writer.matrix(f"{block}.time_mix_{name}2", rank, width)
            if name != "g":
                writer.vector(f"{block}.time_mix_{name}0.weight", width, low=-1.0)
        writer.vector(f"{block}.time_mix_lerp_fused.weight", 6, 1, 1, width)
        writer.vector(f"{block}.time_mix_k_k.weight", width, low=0.5)
        writer.vector(f"{block}.time_mix_k_a.weight", width, low=0.5)
        writer.vector(f"{block}.time_mix_r_k.weight", width, low=-0.5, high=0.5)
        for name in ("key", "value", "receptance", "output"):
            writer.matrix(f"{block}.time_mix_{name}", width, width)
        writer.vector(f"{block}.channel_mix_lerp_k.weight", 1, 1, width)
        writer.matrix(f"{block}.channel_mix_key", width, 2 * width)
        writer.matrix(f"{block}.channel_mix_value", 2 * width, width)
    return writer.done()


def _layer_norm(writer: _Writer, name: str) -> None:
    writer.ones(name)
    writer.file.add_tensor(f"{name}.bias", np.zeros(writer.tiny.width, dtype=np.float32))


def write_lfm2(path: Path, tiny: Tiny = _LONG) -> Path:
    """A hybrid of short convolutions and attention."""
    writer = _Writer(path, "lfm2", tiny, layers=4)
    file, width, heads, kernel = writer.file, tiny.width, tiny.heads, 3
    kv_heads = [0, 0, 2, 2]
    file.add_head_count(heads)
    file.add_head_count_kv(kv_heads)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_shortconv_l_cache(kernel)
    writer.words()
    writer.ones("token_embd_norm")
    for k in range(writer.layers):
        block = f"blk.{k}"
        writer.ones(f"{block}.attn_norm", f"{block}.ffn_norm")
        writer.feed_forward(block)
        if kv_heads[k]:
            writer.attention(block, heads, kv_heads[k])
        else:
            writer.matrix(f"{block}.shortconv.conv", kernel, width)
            writer.matrix(f"{block}.shortconv.in_proj", width, 3 * width)
            writer.matrix(f"{block}.shortconv.out_proj", width, width)
    return writer.done()


def _write_delta_net(path: Path, architecture: str, tiny: Tiny, experts: int) -> Path:
    """Three layers of gated delta net and one of attention."""
    writer = _Writer(path, architecture, tiny, layers=4)
    file, width, heads = writer.file, tiny.width, 2
    state, groups, value_heads = 16, 2, 2
    keys, values = state * groups, state * value_heads
    file.add_head_count(heads)
    file.add_head_count_kv(1)
    file.add_key_length(width // heads)
    file.add_value_length(width // heads)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(width // heads)
    file.add_ssm_conv_kernel(4)
    file.add_ssm_inner_size(values)
    file.add_ssm_state_size(state)
    file.add_ssm_time_step_rank(value_heads)
    file.add_ssm_group_count(groups)
    if experts:
        file.add_expert_count(experts)
        file.add_expert_used_count(2)
        file.add_expert_feed_forward_length(width)
        file.add_expert_shared_feed_forward_length(width)
    else:
        file.add_rope_dimension_sections([4, 4, 8, 0])
    writer.words()
    writer.ones("output_norm")
    for k in range(writer.layers):
        block = f"blk.{k}"
        writer.ones(f"{block}.attn_norm", f"{block}.post_attention_norm")
        if k % 4 == 3:
            writer.attention(block, heads, 1, gated=True)
        else:
            writer.matrix(f"{block}.attn_qkv", width, 2 * keys + values)
            writer.matrix(f"{block}.attn_gate", width, values)
            writer.matrix(f"{block}.ssm_conv1d", 4, 2 * keys + values)
            writer.vector(f"{block}.ssm_dt.bias", value_heads, low=-1.0)
            writer.vector(f"{block}.ssm_a", value_heads, low=-1.0, high=-0.1)
            if experts:
                writer.matrix(f"{block}.ssm_ba", width, 2 * value_heads)
            else:
                writer.matrix(f"{block}.ssm_beta", width, value_heads)
                writer.matrix(f"{block}.ssm_alpha", width, value_heads)
            writer.ones(f"{block}.ssm_norm", size=state)
            writer.matrix(f"{block}.ssm_out", values, width)
        if experts:
            _experts(writer, block, experts)
        else:
            writer.feed_forward(block)
    return writer.done()


def _experts(writer: _Writer, block: str, experts: int) -> None:
    width = writer.tiny.width
    writer.matrix(f"{block}.ffn_gate_inp", width, experts)
    for name in ("gate", "up", "down"):
        writer.matrix(f"{block}.ffn_{name}_exps", width, width, experts)
        writer.matrix(f"{block}.ffn_{name}_shexp", width, width)
    writer.vector(f"{block}.ffn_gate_inp_shexp.weight", width, low=-0.1, high=0.1)


def write_qwen35(path: Path, tiny: Tiny = _LONG) -> Path:
    """A hybrid of gated delta nets and attention that keeps snapshots."""
    return _write_delta_net(path, "qwen35", tiny, experts=0)


def write_qwen3next(path: Path, tiny: Tiny = _LONG) -> Path:
    """The same with experts, in an architecture that keeps none."""
    return _write_delta_net(path, "qwen3next", tiny, experts=4)


def _write_long_llama(path: Path, tiny: Tiny = _LONG) -> Path:
    return write_llama(path, tiny)


def _write_long_mamba(path: Path, tiny: Tiny = _LONG) -> Path:
    return write_mamba(path, tiny)


#: Every kind of memory by name.
WRITERS = {
    "llama": _write_long_llama,
    "gemma3": write_gemma3,
    "mamba": _write_long_mamba,
    "rwkv7": write_rwkv7,
    "lfm2": write_lfm2,
    "qwen35": write_qwen35,
    "qwen3next": write_qwen3next,
}
