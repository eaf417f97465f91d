"""Tiny targets with prediction heads (MTP) and their sidecars, with heads made to be right.

*copy*: the trunk's last layer attends, with random weights; those before it add nothing. The head
is that layer again, and reads the token alone: it is right only while its cache holds every token,
each at its place. *cycle*: no layer adds anything, so that a token has one successor. The head
reads the state alone and moves it one token on: it is right only with the state of the token
before, its own where the target's is not there yet. Of several, each rolls the state by one more
place: it is right only with what the head before it made. *random*: wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_cycle import (
    INNER,
    N_TOKENS,
    ONES,
    WIDTH,
    cycle_output,
    drawing,
    embedding,
    mover,
)
from tests.tiny_gguf import Tiny, finish, write_vocabulary
from tests.tiny_new_heads import NEW, write_new_shape

#: What of a model's blocks a file has.
ALL, TRUNK, HEADS = "all", "trunk", "heads"
_DELTA_NETS = ("qwen35", "qwen35moe", "qwen3next")
_LATENT, _INDEXED = ("deepseek2", "deepseek32", "glm-dsa"), ("deepseek32", "glm-dsa")
#: Architectures with one head, and with several.
ONE_HEAD = (*_DELTA_NETS, *_LATENT, "glm4moe", "cohere2moe", *NEW)
SEVERAL = ("hy_v3", "mimo2", "step35")
_EXPERTS = (*_DELTA_NETS[1:], *_LATENT, "glm4moe", "cohere2moe")


@dataclass(frozen=True)
class Made:
    """What to write. `steps`: how many tokens a cycle's head moves on, wrong unless 1. `agreement`:
    after what share of a cycle's tokens it is right. `recurrent`: how much a hybrid's other layers
    add. `layers`: of other trunks, all but the last add nothing."""

    arch: str = "hy_v3"
    how: str = "copy"
    heads: int = 1
    steps: int = 1
    agreement: float = 1.0
    recurrent: float = 0.0
    layers: int = 1
    seed: int = 1
    template: str | None = Tiny().template

    def but(self, **changes):
        return replace(self, **changes)

    @property
    def is_hybrid(self):
        return self.arch in _DELTA_NETS

    @property
    def trunk(self):
        """Layers before the heads."""
        if self.arch in NEW:
            return NEW[self.arch][0]
        return 4 if self.is_hybrid else self.layers

    @property
    def attention_heads(self):
        """Of queries, and of keys and values."""
        if self.arch in _LATENT:
            return 4, 1
        return (2, 1) if self.is_hybrid else (4, 2)

    @property
    def experts(self):
        return 4 if self.arch in _EXPERTS else 0


def attention_layer(draw, made, adds):
    """Attention and feed-forward by the names of an architecture; both add `adds` of what they do.

    Names without their block.
    """
    if made.arch in _LATENT:
        found = latent_attention(draw, adds) | feed_forward(draw, made, adds)
        return found | (indexer(draw) if made.arch in _INDEXED else {})
    heads, kv_heads = made.attention_heads
    size = WIDTH // heads
    q = draw(WIDTH * (1 + made.is_hybrid), WIDTH, scale=2.0)
    k, v = draw(size * kv_heads, WIDTH, scale=2.0), draw(size * kv_heads, WIDTH)
    late = made.is_hybrid or made.arch == "glm4moe"
    norms = ["attn_norm", "post_attention_norm" if late else "ffn_norm"]
    if made.arch == "cohere2moe":  # attention and feed-forward side by side
        del norms[1]
    found = {f"{name}.weight": ONES for name in norms}
    if made.arch == "mimo2":
        found["attn_qkv.weight"] = np.concatenate([q, k, v])
    else:
        found |= {"attn_q.weight": q, "attn_k.weight": k, "attn_v.weight": v}
        if made.arch != "cohere2moe":
            found |= {f"attn_{name}_norm.weight": ONES[:size] for name in "qk"}
    found["attn_output.weight"] = adds * draw(WIDTH, WIDTH, scale=3.0)
    return found | feed_forward(draw, made, adds)


#: Of latent attention: numbers that are kept of a token, and of a query, rotated or not.
_KEPT, _ROTATED, _PLAIN = 32, 16, 16


def latent_attention(draw, adds, heads=4):
    """DeepSeek's: what is kept of a token is small."""
    ones, size = ONES[:_KEPT], _PLAIN + _ROTATED
    return {
        "attn_norm.weight": ONES, "ffn_norm.weight": ONES,
        "attn_q_a_norm.weight": ones, "attn_kv_a_norm.weight": ones,
        "attn_q_a.weight": draw(_KEPT, WIDTH, scale=2.0),
        "attn_q_b.weight": draw(heads * size, _KEPT, scale=2.0),
        "attn_kv_a_mqa.weight": draw(_KEPT + _ROTATED, WIDTH, scale=2.0),
        "attn_k_b.weight": draw(heads, _KEPT, _PLAIN, scale=2.0),
        "attn_v_b.weight": draw(heads, _PLAIN, _KEPT),
        "attn_output.weight": adds * draw(WIDTH, heads * _PLAIN, scale=3.0),
    }  # fmt: skip


def indexer(draw, heads=2, size=WIDTH):
    """What chooses the tokens to attend to; here all of them are."""
    return {
        "indexer.k_norm.weight": ONES[:size], "indexer.k_norm.bias": 0 * ONES[:size],
        "indexer.proj.weight": draw(heads, WIDTH), "indexer.attn_k.weight": draw(size, WIDTH),
        "indexer.attn_q_b.weight": draw(heads * size, _KEPT),
    }  # fmt: skip


def feed_forward(draw, made, adds):
    """Gated, or with experts."""
    if not made.experts:
        return {
            "ffn_gate.weight": draw(INNER, WIDTH),
            "ffn_up.weight": draw(INNER, WIDTH),
            "ffn_down.weight": adds * draw(WIDTH, INNER, scale=2.0),
        }
    found = {"ffn_gate_inp.weight": draw(made.experts, WIDTH)}
    for name, scale in (("gate", 1.0), ("up", 1.0), ("down", adds)):
        found[f"ffn_{name}_exps.weight"] = scale * draw(made.experts, WIDTH, WIDTH)
        found[f"ffn_{name}_shexp.weight"] = scale * draw(WIDTH, WIDTH)
    if made.arch == "glm4moe":
        found["exp_probs_b.bias"] = np.zeros(made.experts, dtype=np.float32)
    if made.is_hybrid:
        found["ffn_gate_inp_shexp.weight"] = np.linspace(-0.1, 0.1, WIDTH, dtype=np.float32)
    return found


def recurrent_layer(draw, made):
    """A gated delta net."""
    keys = values = 32
    adds = np.float32(made.recurrent)
    found = {
        "attn_norm.weight": ONES, "post_attention_norm.weight": ONES,
        "attn_qkv.weight": draw(2 * keys + values, WIDTH), "attn_gate.weight": draw(values, WIDTH),
        "ssm_conv1d.weight": draw(2 * keys + values, 4), "ssm_norm.weight": ONES[:16],
        "ssm_dt.bias": np.linspace(-1, 1, 2, dtype=np.float32),
        "ssm_a": np.linspace(-1, -0.1, 2, dtype=np.float32),
        "ssm_out.weight": adds * draw(WIDTH, values, scale=3.0),
    }  # fmt: skip
    if made.arch == "qwen3next":
        found["ssm_ba.weight"] = draw(4, WIDTH)
    else:
        found |= {"ssm_beta.weight": draw(2, WIDTH), "ssm_alpha.weight": draw(2, WIDTH)}
    return found | feed_forward(draw, made, adds)


def layers_of(made, draw, adds):
    """Those before the heads, and what a head has of the last one."""
    if made.arch in NEW:
        return NEW[made.arch][1](draw, adds, np.float32(made.recurrent))
    layers = [
        recurrent_layer(draw, made) if made.is_hybrid else attention_layer(draw, made, adds * 0)
        for _ in range(made.trunk - 1)
    ]
    layers.append(attention_layer(draw, made, adds))
    return layers, layers[-1]


def blocks_of(made):
    """The layers, then the heads."""
    draw, adds = drawing(made.seed), np.float32(made.how != "cycle")
    blocks, last = layers_of(made, draw, adds)
    eye, none = np.eye(WIDTH, dtype=np.float32), np.zeros((WIDTH, WIDTH), dtype=np.float32)
    for k in range(made.heads):
        if made.how == "random":
            block, mixed = dict(layers_of(made, draw, adds)[1]), draw(WIDTH, 2 * WIDTH)
        else:
            before, after = (np.roll(eye, n * (made.heads > 1), axis=0) for n in (k, k + 1))
            moved = after @ mover(made.steps) @ before.T
            parts = (eye, none) if made.how == "copy" else (none, moved)
            block, mixed = dict(last), np.concatenate(parts, axis=1)
            if made.how == "cycle" and (made.heads > 1 or made.agreement < 1.0):
                block["nextn.shared_head_head.weight"] = (
                    cycle_output(made.agreement, made.seed) @ after.T
                )
        block["nextn.eh_proj.weight"] = mixed
        norm = "layer_output_norm" if made.arch == "bailingmoe3" else "nextn.shared_head_norm"
        for name in ("nextn.enorm", "nextn.hnorm", norm):
            block[f"{name}.weight"] = ONES
        blocks.append(block)
    return blocks


def write_mtp(path: Path, made: Made = Made(), keep=ALL, counts_heads=True, **tokens) -> Path:
    """A target with its heads; with `keep` `TRUNK`, as quantizers leave it, or a sidecar.

    Unless it `counts_heads`, its header says nothing of them. `tokens` go to its vocabulary.
    """
    writer = gguf.GGUFWriter(path, made.arch)
    counted = made.heads * counts_heads
    (write_new_shape if made.arch in NEW else _write_shape)(writer, made, counted)
    write_vocabulary(writer, Tiny(template=made.template, **tokens))
    output = cycle_output() if made.how == "cycle" else drawing(9)(N_TOKENS, WIDTH, scale=4.0)
    common = {"token_embd.weight": embedding(), "output_norm.weight": ONES}
    pad = np.zeros((tokens.get("padding", 0), WIDTH), dtype=np.float32)
    common["token_embd.weight"] = np.concatenate([common["token_embd.weight"], pad])
    common["output.weight"] = np.concatenate([output, pad])
    for name, values in common.items():
        writer.add_tensor(name, values)
    for k, block in enumerate(blocks_of(made)):
        if keep in (ALL, HEADS if k >= made.trunk else TRUNK):
            for name, values in block.items():
                writer.add_tensor(f"blk.{k}.{name}", values)
    return finish(writer, path)


def _write_shape(writer, made, counted):
    heads, kv_heads = made.attention_heads
    writer.add_block_count(made.trunk + counted)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // heads)
    if made.arch in _LATENT:
        writer.add_key_length(_KEPT + _ROTATED)
        writer.add_value_length(_KEPT)
        writer.add_key_length_mla(_PLAIN + _ROTATED)
        writer.add_value_length_mla(_PLAIN)
        writer.add_q_lora_rank(_KEPT)
        writer.add_kv_lora_rank(_KEPT)
        if made.arch in _INDEXED:
            for key, value in (("head_count", 2), ("key_length", WIDTH), ("top_k", 1024)):
                writer.add_uint32(f"{made.arch}.attention.indexer.{key}", value)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    else:
        writer.add_key_length(WIDTH // heads)
        writer.add_value_length(WIDTH // heads)
    writer.add_expert_feed_forward_length(WIDTH if made.experts else 0)
    if counted:
        writer.add_nextn_predict_layers(counted)
    if made.experts:
        writer.add_expert_count(made.experts)
        writer.add_expert_used_count(2)
        writer.add_expert_shared_feed_forward_length(WIDTH)
    if made.arch in ("glm4moe", "cohere2moe", *_LATENT):
        writer.add_expert_shared_count(1)
        writer.add_leading_dense_block_count(0)
    if made.is_hybrid:
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(32)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(2)
        writer.add_ssm_group_count(2)
        if made.arch != "qwen3next":
            writer.add_rope_dimension_sections([4, 4, 8, 0])
    if made.arch == "cohere2moe":
        writer.add_logit_scale(1.0)
    if made.arch in ("mimo2", "step35", "cohere2moe"):
        writer.add_sliding_window(1024)  # of the heads alone, which are to say what the trunk says
        writer.add_sliding_window_pattern([made.arch != "mimo2"] * made.trunk + [True] * counted)
