"""Write a draft as a GGUF of architecture ``dflash``, and read one back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from dspark_gguf.calibration import Calibration
from dspark_gguf.engine.dflash import CALIBRATION
from dspark_gguf.paths import replacing
from dspark_gguf.train.network import Layer, Network
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.weights import Weights

#: Attribute of a layer -> name in the file.
_MATRICES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
_NORMS = {
    "attn_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
}  # fmt: skip


def export(
    network: Network,
    target: Weights,
    path: Path,
    type: str,
    name: str,
    calibration: Calibration | None = None,
) -> None:
    """Write the draft, matrices in `type` (f16 or q8_0), under a temporary name until complete.

    `calibration` was learned while the draft was served; the scheduler starts from it.
    """
    with replacing(path) as part:
        writer = gguf.GGUFWriter(part, "dflash")
        writer.add_name(name)
        _write_metadata(writer, network)
        if calibration is not None:
            writer.add_string(CALIBRATION, json.dumps(calibration.as_dict()))
        _copy_tokenizer(writer, target)
        writer.add_mask_token_id(network.mask)
        kind = gguf.GGMLQuantizationType[type.upper()]
        for tensor, value in _matrices(network).items():
            data = value.detach().float().cpu().numpy()
            if kind == gguf.GGMLQuantizationType.Q8_0 and data.shape[1] % 32 == 0:
                writer.add_tensor(tensor, gguf.quants.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(tensor, data.astype(np.float16))
        for tensor, value in _vectors(network).items():
            writer.add_tensor(tensor, value.detach().float().cpu().numpy())
        writer.add_tensor("d2t", network.known.cpu().numpy().astype(np.int64))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def load(network: Network, draft: Weights) -> None:
    """Load the weights of a file; the scale of the inputs is taken out of `fc`."""
    width = network.shape.width
    with torch.no_grad():
        for tensor, value in (_matrices(network) | _vectors(network)).items():
            if tensor == "fc.weight":
                whole = torch.from_numpy(draft[tensor]).view(width, -1, width)
                value = network.fc.weight
                found = (whole * network.scale.cpu()[:, None]).flatten(1)
            elif tensor in draft:
                found = torch.from_numpy(draft[tensor])
            else:
                continue  # the target's own output matrix, which the network starts with
            value.copy_(found)


def known_tokens(draft: Weights, shape: Shape) -> Tensor:
    """The ids in a draft file's vocabulary."""
    if "d2t" in draft:
        raw = next(t for t in draft.readers[0].tensors if t.name == "d2t")
        return torch.from_numpy(np.array(raw.data).astype(np.int64).reshape(-1))
    return torch.arange(shape.n_vocab)


def _matrices(network: Network) -> dict[str, Tensor]:
    width = network.shape.width
    fc = network.fc.weight.view(width, -1, width) / network.scale[:, None]
    found: dict[str, Tensor] = {
        "fc.weight": fc.flatten(1),
        "output.weight": network.output,
        "markov_w1.weight": network.markov_in,
        "markov_w2.weight": network.markov_out,
    }
    for k, layer in enumerate(network.layers):
        found |= {f"blk.{k}.{n}.weight": getattr(layer, own).weight for own, n in _MATRICES.items()}
    return found


def _vectors(network: Network) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {
        "enc.output_norm.weight": network.context_norm,
        "output_norm.weight": network.output_norm,
    }
    for k, layer in enumerate(network.layers):
        assert isinstance(layer, Layer)
        found |= {f"blk.{k}.{n}.weight": getattr(layer, own) for own, n in _NORMS.items()}
    if network.has_confidence:
        found["conf_proj.weight"] = network.confidence[None, :-1]
        found["conf_proj.bias"] = network.confidence[-1:]
    return found


def _write_metadata(writer: gguf.GGUFWriter, network: Network) -> None:
    shape = network.shape
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_uint32("dflash.block_size", shape.block)
    writer.add_array("dflash.target_layers", list(shape.target_layers))
    writer.add_bool("dflash.sample_from_anchor", True)
    writer.add_bool("dflash.has_confidence_head", network.has_confidence)
    writer.add_bool("dflash.attention.causal", False)


def _copy_tokenizer(writer: gguf.GGUFWriter, target: Weights) -> None:
    for name, field in target.readers[0].fields.items():
        if name.startswith("tokenizer.") and name not in (
            "tokenizer.chat_template", "tokenizer.ggml.mask_token_id",
        ):  # fmt: skip
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
