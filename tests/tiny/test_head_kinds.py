"""What a file is to others, from its header alone: before llama.cpp, which may crash, is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.gguf import Header, Tensor
from dspark_gguf.engine.heads import (
    are_stripped,
    kind_of,
    overrides_for,
    require_model,
    target_draft,
    why_no_heads,
)
from dspark_gguf.engine.memory import Footprint
from dspark_gguf.errors import ModelError


def header(architecture, names, name="x.gguf", **values):
    """A header with the tensors of these names."""
    metadata = {"general.architecture": architecture, "tokenizer.ggml.tokens": ["a"] * 9}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": v for key, v in values.items()}
    return Header(Path(name), 3, metadata, {n: Tensor(n, "f32", (4,), 16) for n in names})


TRUNK = [f"blk.{k}.attn_norm.weight" for k in range(4)]
HEAD = ["blk.4.attn_norm.weight", "blk.4.nextn.eh_proj.weight"]
SIZE = {"block_count": 5, "nextn_predict_layers": 1, "embedding_length": 8}


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("model", header("llama", TRUNK, block_count=4)),
        ("model", header("qwen35", TRUNK + HEAD, **SIZE)),
        ("model", header("qwen35", TRUNK, **SIZE)),
        ("mtp", header("qwen35", HEAD, **SIZE)),
        ("block", header("dflash", TRUNK[:2])),
        ("eagle3", header("eagle3", TRUNK[:1])),
        ("gemma4-assistant", header("gemma4-assistant", TRUNK, block_count=4,
                                    nextn_predict_layers=4)),
    ],
)  # fmt: skip
def test_the_kind(kind, file):
    """A model with its heads inside, or without those it counts, is a model."""
    assert kind_of(file) == kind
    if kind == "model":
        require_model(file)
    else:
        with pytest.raises(ModelError, match="Give it with -d"):
            require_model(file)


def test_layers_are_counted_without_heads():
    """``block_count`` includes them."""
    file = header("qwen35", TRUNK + HEAD, **SIZE)
    assert (file.layers, file.heads) == (4, 1)
    plain = header("qwen35", TRUNK, block_count=4, embedding_length=8)
    assert (plain.layers, plain.heads) == (4, 0)
    assert header("gemma4-assistant", TRUNK, block_count=4, nextn_predict_layers=4).layers == 4
    values = {"attention__head_count": 2, "attention__head_count_kv": [1, 1, 1, 1, 1]}
    sizes = [
        Footprint(header("hy_v3", TRUNK, **{**SIZE, **values, **more}), ModelOptions())
        for more in ({}, {"block_count": 4, "nextn_predict_layers": 0})
    ]
    assert sizes[0].cache_bytes(100) == sizes[1].cache_bytes(100) > 0


def test_heads_that_cannot_be_used_say_why():
    """None, left out by a quantizer, without a graph in this build, too many, a part of the ids."""
    assert not why_no_heads(header("qwen35", TRUNK + HEAD, **SIZE))
    assert "has no prediction heads" in why_no_heads(header("llama", TRUNK, block_count=4))
    stripped = header("qwen35", TRUNK, **SIZE)
    assert "left them out" in why_no_heads(stripped)
    assert "cannot run the prediction heads of glm4" in why_no_heads(
        header("glm4", TRUNK + HEAD, **SIZE)
    )
    more = [*HEAD, "blk.3.nextn.eh_proj.weight"]
    two = {**SIZE, "nextn_predict_layers": 2}
    assert "2 heads" in why_no_heads(header("qwen35", TRUNK + more, **two))
    assert not why_no_heads(header("hy_v3", TRUNK + more, **two))
    assert "part of the vocabulary" in why_no_heads(header("qwen35", [*HEAD, "d2t"], **SIZE))
    with pytest.raises(ModelError, match="left them out"):
        target_draft(stripped, stripped)


def test_a_stripped_model_is_loaded_without_its_heads():
    """Those that would not load otherwise: a whole one is left alone."""
    stripped = header("qwen35", TRUNK, **SIZE)
    assert are_stripped(stripped)
    expected = {"qwen35.nextn_predict_layers": 0, "qwen35.block_count": 4}
    assert overrides_for(stripped) == expected
    assert not overrides_for(header("qwen35", TRUNK + HEAD, **SIZE))
    assert not overrides_for(header("hy_v3", TRUNK, **SIZE))


def test_states_of_several_streams():
    """DeepSeek-V4 hands out all of its hyper-connection's streams."""
    four = {**SIZE, "hyper_connection__count": 4}
    file = header("deepseek4", TRUNK + HEAD, name="model.gguf", **four)
    assert target_draft(file, file).width == 4 * 8


def test_drafts_that_need_their_target():
    """Each names the first thing that does not fit; its own heads fit a model."""
    own = header("qwen35", TRUNK + HEAD, name="model.gguf", **SIZE)
    assert target_draft(own) is None
    assert not target_draft(own, own).why_not_for(own)
    sidecar = target_draft(header("qwen35", HEAD, **SIZE))
    assert not sidecar.why_not_for(own)
    assert "architecture qwen35, not llama" in sidecar.why_not_for(header("llama", TRUNK))
    wide = header("qwen35", TRUNK, block_count=4, embedding_length=16)
    assert "8 wide, not 16" in sidecar.why_not_for(wide)
    other = header("qwen35", TRUNK, block_count=4, embedding_length=8)
    other.metadata["tokenizer.ggml.tokens"] = ["a"] * 10
    assert "9 tokens, not 10" in sidecar.why_not_for(other)


EAGLE = {"target_layers": [0, 1, 3], "target_hidden_size": 8, "embedding_length": 8}


def test_eagle3_drafts_and_their_targets():
    """Another width, a missing layer, an architecture that hands out none, nothing to borrow."""
    draft = target_draft(header("eagle3", ["fc.weight"], **EAGLE))
    llama = header("llama", TRUNK, block_count=4, embedding_length=8)
    assert not draft.why_not_for(llama)
    assert draft.borrows == ["embeddings", "output head"]
    assert "layer 3, not 2" in draft.why_not_for(header("llama", [], block_count=2,
                                                        embedding_length=8))  # fmt: skip
    assert "hy_v3 does not expose" in draft.why_not_for(
        header("hy_v3", TRUNK, block_count=4, embedding_length=8)
    )
    narrow = target_draft(header("eagle3", ["fc.weight"], **{**EAGLE, "embedding_length": 4}))
    assert "cannot borrow the embeddings" in narrow.why_not_for(llama)
    with pytest.raises(ModelError, match="three of them"):
        target_draft(header("eagle3", ["fc.weight"], **{**EAGLE, "target_layers": [0, 1]}))
