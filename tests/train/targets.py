"""Tiny targets of every architecture that `train` takes, which say a rule."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_dflash import N_TOKENS, TINY, with_rule
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_kinds import _Writer, write_lfm2, write_qwen3next, write_qwen35

#: What a target says after each token: one way round all 256 bytes.
SUCCESSOR = [(5 * token + 3) % 256 for token in range(N_TOKENS)]
#: What adds to the token's own vector, and would hide it.
_SILENT = ("attn_output.weight", "ffn_down.weight", "ssm_out.weight", "shortconv.out_proj.weight",
           "ffn_down_exps.weight", "ffn_down_shexp.weight")  # fmt: skip


def write_qwen3(path: Path, tiny: Tiny = TINY) -> Path:
    """A llama with norms of queries and keys, whose rotary embedding turns halves."""
    writer = _Writer(path, "qwen3", tiny, tiny.layers)
    file, width, heads = writer.file, tiny.width, tiny.heads
    file.add_head_count(heads)
    file.add_head_count_kv(heads // 2)
    file.add_key_length(width // heads)
    file.add_value_length(width // heads)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_freq_base(1e6)
    writer.words()
    writer.ones("output_norm")
    for k in range(writer.layers):
        block = f"blk.{k}"
        writer.ones(f"{block}.attn_norm", f"{block}.ffn_norm")
        writer.attention(block, heads, heads // 2)
        writer.feed_forward(block)
    return writer.done()


WRITERS = {
    "llama": write_llama, "qwen3": write_qwen3, "lfm2": write_lfm2, "qwen35": write_qwen35,
    "qwen3next": write_qwen3next,
}  # fmt: skip


def write_rule(path: Path, architecture: str) -> Path:
    """A target that says ``SUCCESSOR[token]`` after a token, whatever came before it."""
    return with_rule(WRITERS[architecture](path, TINY), SUCCESSOR, _SILENT)
