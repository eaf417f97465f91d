"""Layers and headers of the architectures with one head that nothing else here is like: BailingMoE
3, DeepSeek-V4 and Nemotron-H, for ``tiny_heads``.
"""

from __future__ import annotations

import numpy as np

from tests.tiny_cycle import ONES, WIDTH

EXPERTS, KEPT, ROTATED, PLAIN = 4, 32, 16, 16
#: Of DeepSeek-V4: streams in the place of one, and how much each layer compresses; 0: not at all.
STREAMS, RATIOS = 4, [4, 128, 0, 0]


def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


def experts(draw, adds, gated):
    """A mixture, with a shared expert."""
    found = {"ffn_gate_inp.weight": draw(EXPERTS, WIDTH), "exp_probs_b.bias": zeros(EXPERTS)}
    for name, scale in (("gate", 1.0), ("up", 1.0), ("down", adds)):
        if gated or name != "gate":
            found[f"ffn_{name}_exps.weight"] = scale * draw(EXPERTS, WIDTH, WIDTH)
            found[f"ffn_{name}_shexp.weight"] = scale * draw(WIDTH, WIDTH)
    return found


def without_mean(weights):
    """What they add has a mean of zero: Nemotron-H's head takes that off, its trunk does not."""
    return (weights - weights.mean(axis=-2, keepdims=True)).astype(np.float32)


def nemotron(draw, adds, recurrent):
    """A Mamba-2 layer, one of attention, one of experts; the head is the latter two in one."""
    inner, state, ranks = 32, 16, 2
    conv = inner + 2 * state
    mamba = {
        "attn_norm.weight": ONES, "ssm_in.weight": draw(inner + conv + ranks, WIDTH),
        "ssm_conv1d.weight": draw(conv, 4), "ssm_conv1d.bias": zeros(conv),
        "ssm_dt.bias": np.linspace(-1, 1, ranks, dtype=np.float32),
        "ssm_a": np.linspace(-1, -0.1, ranks, dtype=np.float32)[:, None],
        "ssm_d": ONES[:ranks, None], "ssm_norm.weight": ONES[None, :inner],
        "ssm_out.weight": without_mean(recurrent * draw(WIDTH, inner, scale=3.0)),
    }  # fmt: skip
    attention = {
        "attn_norm.weight": ONES,
        "attn_q.weight": draw(WIDTH, WIDTH, scale=2.0), "attn_k.weight": draw(32, WIDTH, scale=2.0),
        "attn_v.weight": draw(32, WIDTH),
        "attn_output.weight": without_mean(adds * draw(WIDTH, WIDTH, scale=3.0)),
    }  # fmt: skip
    mixture = experts(draw, adds, gated=False)
    for name in ("exps", "shexp"):
        mixture[f"ffn_down_{name}.weight"] = without_mean(mixture[f"ffn_down_{name}.weight"])
    head = {**attention, **mixture, "post_attention_norm.weight": ONES}
    return [mamba, attention, {"attn_norm.weight": ONES, **mixture}], head


def nemotron_shape(writer, counted):
    writer.add_head_count(4)
    writer.add_head_count_kv([0, 2, 0, 2][: 3 + counted])
    writer.add_feed_forward_length([0, 0, WIDTH, 0][: 3 + counted])
    writer.add_layer_norm_eps(1e-6)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(32)
    writer.add_ssm_state_size(16)
    writer.add_ssm_time_step_rank(2)
    writer.add_ssm_group_count(1)


def bailing(draw, adds, recurrent):
    """A layer of Kimi's delta attention, and a gated one of latent attention."""
    square, kernel = (WIDTH, WIDTH), (1, WIDTH, 1, 4)
    delta = {
        **{f"ssm_conv1d_{name}.weight": draw(*kernel) for name in "qkv"},
        **{f"attn_{name}.weight": draw(*square) for name in "qkv"},
        "ssm_f_a.weight": draw(*square), "ssm_g_a.weight": draw(*square),
        "ssm_beta.weight": draw(4, WIDTH), "ssm_norm.weight": ONES[:16],
        "ssm_a": np.linspace(0.1, 1, 4, dtype=np.float32)[:, None],
        "ssm_dt.bias": np.linspace(-1, 1, WIDTH, dtype=np.float32),
        "attn_output.weight": recurrent * draw(*square, scale=3.0),
    }  # fmt: skip
    size = PLAIN + ROTATED
    latent = {
        "attn_q_a.weight": draw(KEPT, WIDTH, scale=2.0), "attn_q_a_norm.weight": ONES[:KEPT],
        "attn_q_b.weight": draw(4 * size, KEPT, scale=2.0),
        "attn_kv_a_mqa.weight": draw(KEPT + ROTATED, WIDTH, scale=2.0),
        "attn_kv_a_norm.weight": ONES[:KEPT], "attn_k_b.weight": draw(4, KEPT, PLAIN, scale=2.0),
        "attn_v_b.weight": draw(4, PLAIN, KEPT), "attn_gate.weight": draw(4, WIDTH),
        "attn_output.weight": adds * draw(WIDTH, 4 * PLAIN, scale=3.0),
    }  # fmt: skip
    norms = {"attn_norm.weight": ONES, "ffn_norm.weight": ONES}
    layers = [
        {**norms, **delta, **experts(draw, recurrent, gated=True)},
        {**norms, **latent, **experts(draw, adds, gated=True)},
    ]
    return layers, layers[1]


def bailing_shape(writer, counted):
    arch = "bailingmoe3"
    writer.add_head_count(4)
    writer.add_head_count_kv([0, 1, 1][: 2 + counted])
    writer.add_feed_forward_length(WIDTH)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_key_length(KEPT + ROTATED)
    writer.add_value_length(KEPT)
    writer.add_key_length_mla(PLAIN + ROTATED)
    writer.add_value_length_mla(PLAIN)
    writer.add_q_lora_rank(KEPT)
    writer.add_kv_lora_rank(KEPT)
    writer.add_ssm_conv_kernel(4)
    writer.add_kda_head_dim(16)
    writer.add_float32(f"{arch}.kda.gate_lower_bound", -5.0)
    writer.add_uint32(f"{arch}.expert_gating_func", 2)
    writer.add_leading_dense_block_count(0)


def deepseek4(draw, adds, recurrent):
    """Layers of attention over a shared key and value: compressed by 4 and by 128, and as it is."""
    layers = [stream_layer(draw, recurrent, ratio) for ratio in RATIOS[:2]]
    layers.append(stream_layer(draw, adds))
    return layers, layers[-1]


def stream_layer(draw, adds, ratio=0, size=2 * WIDTH):
    """With what mixes the streams before and after."""
    groups, rank, mix = 2, 16, (2 + STREAMS) * STREAMS
    layer = {
        "attn_norm.weight": ONES, "ffn_norm.weight": ONES, "attn_sinks.weight": zeros(4),
        "attn_q_a.weight": draw(KEPT, WIDTH, scale=2.0), "attn_q_a_norm.weight": ONES[:KEPT],
        "attn_q_b.weight": draw(4 * size, KEPT, scale=2.0),
        "attn_kv.weight": draw(size, WIDTH, scale=2.0),
        "attn_kv_a_norm.weight": np.ones(size, np.float32),
        "attn_output_a.weight": draw(groups * rank, 4 * size // groups),
        "attn_output_b.weight": adds * draw(WIDTH, groups * rank, scale=3.0),
        **experts(draw, adds, gated=True),
    }  # fmt: skip
    for name in ("attn", "ffn"):
        layer[f"hc_{name}_fn.weight"] = draw(mix, STREAMS * WIDTH)
        layer[f"hc_{name}_base.weight"] = zeros(mix)
        layer[f"hc_{name}_scale.weight"] = ONES[:3]
    for name in ["attn"] * (ratio > 0) + ["indexer"] * (ratio == 4):
        own = size if name == "attn" else WIDTH
        wide = own * (2 if ratio == 4 else 1)
        layer |= {
            f"{name}_compressor_kv.weight": draw(wide, WIDTH),
            f"{name}_compressor_gate.weight": draw(wide, WIDTH),
            f"{name}_compressor_ape.weight": draw(ratio, wide),
            f"{name}_compressor_norm.weight": np.ones(own, np.float32),
        }
    if ratio == 4:
        layer["indexer.proj.weight"] = draw(2, WIDTH)
        layer["indexer.attn_q_b.weight"] = draw(2 * WIDTH, KEPT)
    return layer


def deepseek4_shape(writer, counted):
    arch, layers = "deepseek4", 3 + counted
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_key_length(2 * WIDTH)
    writer.add_value_length(2 * WIDTH)
    writer.add_q_lora_rank(KEPT)
    writer.add_sliding_window(1024)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(True)
    writer.add_uint32(f"{arch}.expert_gating_func", 4)
    writer.add_array(f"{arch}.swiglu_clamp_exp", [100.0] * layers)
    writer.add_array(f"{arch}.attention.compress_ratios", RATIOS[:layers])
    writer.add_float32(f"{arch}.attention.compress_rope_freq_base", 10_000.0)
    for key, value in (
        *(("indexer.head_count", 2), ("indexer.key_length", WIDTH), ("indexer.top_k", 8)),
        *(("output_group_count", 2), ("output_lora_rank", 16)),
    ):
        writer.add_uint32(f"{arch}.attention.{key}", value)
    writer.add_uint32(f"{arch}.hyper_connection.count", STREAMS)
    writer.add_uint32(f"{arch}.hyper_connection.sinkhorn_iterations", 8)
    writer.add_float32(f"{arch}.hyper_connection.epsilon", 1e-6)
    writer.add_uint32(f"{arch}.hash_layer_count", 0)
    writer.add_tensor("output_hc_fn.weight", zeros(STREAMS, STREAMS * WIDTH))
    writer.add_tensor("output_hc_base.weight", zeros(STREAMS))
    writer.add_tensor("output_hc_scale.weight", ONES[:1])


#: Layers before the head, what makes them and the head, and what writes the header.
NEW = {
    "nemotron_h_moe": (3, nemotron, nemotron_shape),
    "bailingmoe3": (2, bailing, bailing_shape),
    "deepseek4": (3, deepseek4, deepseek4_shape),
}


def write_new_shape(writer, made, counted):
    """The header of one of them."""
    layers, _, shape = NEW[made.arch]
    writer.add_block_count(layers + counted)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_shared_feed_forward_length(WIDTH)
    writer.add_expert_shared_count(1)
    if counted:
        writer.add_nextn_predict_layers(counted)
    shape(writer, counted)
