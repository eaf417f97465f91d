"""Tiny GGUFs with random weights: real files for llama.cpp that load in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EOS, IM_END = 256 + 4, 256 + 6


@dataclass(frozen=True)
class Tiny:
    """What to write; `changed` replaces the text of token ids, `padding` adds ids at the end,
    `turned` gives the ordinary tokens' ids in reverse, `split` is the most tensors of a file."""

    seed: int = 0
    noise: float = 0.0
    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 256
    padding: int = 0
    changed: tuple[tuple[int, str], ...] = ()
    turned: bool = False
    template: str | None = TEMPLATE
    add_bos: bool = False
    add_eos: bool = False
    pooling: bool = False
    split: int = 0

    def but(self, **changes):
        return replace(self, **changes)


def byte_names():
    """GPT-2's printable names of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in plain}
    extra = (chr(256 + k) for k in range(256))
    return [names[byte] if byte in names else next(extra) for byte in range(256)]


def vocabulary(tiny):
    tokens = [*byte_names(), "he", "ll", "llo", "hello", *SPECIAL]
    tokens[:260] = tokens[:260][:: -1 if tiny.turned else 1]
    tokens += [f"[PAD{k}]" for k in range(tiny.padding)]
    for token, text in tiny.changed:
        tokens[token] = text
    return tokens


def write_vocabulary(writer, tiny):
    tokens = vocabulary(tiny)
    specials = range(260, 263)
    kinds = [
        gguf.TokenType.CONTROL if k in specials
        else gguf.TokenType.UNUSED if k > 262
        else gguf.TokenType.NORMAL
        for k in range(len(tokens))
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["h e", "l l", "ll o", "he llo"])
    writer.add_bos_token_id(EOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(IM_END)
    writer.add_add_bos_token(tiny.add_bos)
    writer.add_add_eos_token(tiny.add_eos)
    if tiny.template is not None:
        writer.add_chat_template(tiny.template)
    return len(tokens)


def write_tokenizer(path: Path, kind: str, add_bos: bool, add_eos: bool) -> Path:
    """A vocabulary alone, of one of llama.cpp's kinds of tokenizers, with `<s>` and `</s>`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre("default")
        tokens = ["<unk>", "<s>", "</s>", *byte_names(), "he"]
        writer.add_token_merges(["h e"])
    elif kind == "rwkv":
        tokens = ["<unk>", "<s>", "</s>", *(f"\\x{byte:02x}" for byte in range(256)), "he"]
    else:
        letters = [chr(byte) for byte in range(33, 127)]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokens += ["\u2581", *letters, "he", "\u2581he"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    kinds[:3] = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    if kind not in ("gpt2", "rwkv"):
        kinds[3:259] = [gguf.TokenType.BYTE] * 256
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(k) for k in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    return finish(writer, path)


def weights_of(tiny):
    """A function that draws weights: the same for the same seed, whatever the noise."""
    rng, noise = np.random.default_rng(tiny.seed), np.random.default_rng(tiny.seed + 10_000)

    def draw(*shape, scale=1.0):
        base = rng.standard_normal(shape)
        return (scale * (base + tiny.noise * noise.standard_normal(shape))).astype(np.float32)

    return draw


def add_shape(writer, tiny, layers):
    """Metadata of layers with half as many heads of keys as of queries."""
    writer.add_block_count(layers)
    writer.add_context_length(tiny.context)
    writer.add_embedding_length(tiny.width)
    writer.add_feed_forward_length(2 * tiny.width)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(tiny.width // tiny.heads)


def add_layer(writer, tiny, draw, k, **norms):
    """The matrices of such a layer, and norms of these sizes."""
    width, inner = tiny.width, 2 * tiny.width
    for name, rows, columns in (
        ("attn_q", width, width),
        ("attn_k", width // 2, width),
        ("attn_v", width // 2, width),
        ("attn_output", width, width),
        ("ffn_gate", inner, width),
        ("ffn_up", inner, width),
        ("ffn_down", width, inner),
    ):
        writer.add_tensor(f"blk.{k}.{name}.weight", draw(rows, columns, scale=columns**-0.5))
    for name, size in norms.items():
        writer.add_tensor(f"blk.{k}.{name}.weight", np.ones(size, dtype=np.float32))


def write_llama(path: Path, tiny: Tiny = Tiny()) -> Path:
    """A llama-architecture model in F32 with a byte-level vocabulary."""
    width = tiny.width
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tiny.split)
    add_shape(writer, tiny, tiny.layers)
    if tiny.pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_causal_attention(False)
    size = write_vocabulary(writer, tiny)
    draw, ones = weights_of(tiny), np.ones(width, dtype=np.float32)
    small = width**-0.5
    # Padding comes last, so that the weights before it are the same with and without it.
    embedding, output = draw(263, width), draw(263, width, scale=4 * small)
    for table in (embedding, output):
        table[:260] = table[:260][:: -1 if tiny.turned else 1].copy()
    pad = np.zeros((size - 263, width), dtype=np.float32)
    writer.add_tensor("token_embd.weight", np.concatenate([embedding, pad]))
    writer.add_tensor("output.weight", np.concatenate([output, pad]))
    writer.add_tensor("output_norm.weight", ones)
    for k in range(tiny.layers):
        add_layer(writer, tiny, draw, k, attn_norm=width, ffn_norm=width)
    return finish(writer, path)


def write_mamba(path: Path, tiny: Tiny = Tiny()) -> Path:
    """A recurrent model: its state cannot take back a token."""
    width, inner, state, rank, kernel = tiny.width, 2 * tiny.width, 16, 4, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_block_count(tiny.layers)
    writer.add_context_length(tiny.context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    size = write_vocabulary(writer, tiny)
    draw = weights_of(tiny)
    writer.add_tensor("token_embd.weight", draw(size, width))
    writer.add_tensor("output.weight", draw(size, width, scale=0.5))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for k in range(tiny.layers):
        block = f"blk.{k}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(width, dtype=np.float32))
        writer.add_tensor(block + "ssm_in.weight", draw(2 * inner, width, scale=0.1))
        writer.add_tensor(block + "ssm_conv1d.weight", draw(inner, kernel, scale=0.3))
        writer.add_tensor(block + "ssm_conv1d.bias", np.zeros(inner, dtype=np.float32))
        writer.add_tensor(block + "ssm_x.weight", draw(rank + 2 * state, inner, scale=0.1))
        writer.add_tensor(block + "ssm_dt.weight", draw(inner, rank, scale=0.1))
        writer.add_tensor(block + "ssm_dt.bias", np.zeros(inner, dtype=np.float32))
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        writer.add_tensor(block + "ssm_a", decay)
        writer.add_tensor(block + "ssm_d", np.ones(inner, dtype=np.float32))
        writer.add_tensor(block + "ssm_out.weight", draw(width, inner, scale=0.1))
    return finish(writer, path)


def finish(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
