"""What prediction heads and EAGLE-3 drafts take for granted of llama.cpp: names, and the traps that
are the reason for what the engine does, each where it does not end the process.
"""

from __future__ import annotations

import ctypes
from threading import Event

import llama_cpp
import numpy as np
import pytest
from llama_cpp import llama_cpp_ext as listed

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.context import open_context
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pairs import PairBatch
from dspark_gguf.errors import EngineError
from tests.tiny_cycle import CYCLE, WIDTH
from tests.tiny_eagle3 import write_cycle_llama
from tests.tiny_heads import HEADS, TRUNK, Made, write_mtp

OPTIONS = ModelOptions(n_ctx=64, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
NAMES = symbols.LAYERS + symbols.STATES + symbols.OWN_STATE + symbols.HEAD


@pytest.mark.parametrize("name", NAMES)
def test_each_function_is_exported(name):
    """Under the name that we make of its types; the binding's own list of them agrees."""
    ours = symbols.function(name)
    theirs = getattr(listed, name, None)
    if theirs is not None:
        addresses = [ctypes.cast(one, ctypes.c_void_p).value for one in (ours, theirs)]
        assert addresses[0] == addresses[1]


@pytest.mark.parametrize(
    ("name", "linux", "windows"),
    [
        ("llama_get_embeddings_nextn_ith", "_Z30llama_get_embeddings_nextn_ithP13llama_contexti",
         "?llama_get_embeddings_nextn_ith@@YAPEAMPEAUllama_context@@H@Z"),
        ("llama_set_nextn_layer_offset", "_Z28llama_set_nextn_layer_offsetP13llama_contexti",
         "?llama_set_nextn_layer_offset@@YAXPEAUllama_context@@H@Z"),
    ],
)  # fmt: skip
def test_their_names_on_other_systems(name, linux, windows):
    """As the compilers of Linux, macOS and Windows spell them."""
    _, _, *spelling = symbols._SIGNATURES[name]
    assert symbols.mangle(name, *spelling) == [name, linux, windows]


def test_the_fields_and_constants():
    """ctypes accepts any attribute in silence."""
    assert "load_mtp" in {name for name, *_ in llama_cpp.llama_model_params._fields_}
    assert "kv_overrides" in {name for name, *_ in llama_cpp.llama_model_params._fields_}
    context = {name for name, *_ in llama_cpp.llama_context_params._fields_}
    assert context >= {"ctx_type", "ctx_other"}
    assert llama_cpp.llama_model_default_params().load_mtp is False
    assert llama_cpp.LLAMA_CONTEXT_TYPE_MTP != llama_cpp.LLAMA_CONTEXT_TYPE_DEFAULT
    assert ctypes.sizeof(llama_cpp.llama_model_kv_override) == 128 + 128 + 8


@pytest.fixture
def opened(tmp_path):
    """A model with heads and their context."""

    def make(made, path=None):
        path = path or write_mtp(tmp_path / "model.gguf", made)
        model = Model(path, OPTIONS, heads=True)
        context = open_context(model, 64, 8, Event(), heads=made.heads)
        with library.listening():
            symbols.function("llama_set_embeddings_nextn")(context.pointer, True, True)
        return model, context

    return make


def test_block_count_includes_the_heads(opened):
    """Our own count is llama.cpp's, and so is the width of a state."""
    model, _ = opened(Made("qwen35"))
    assert llama_cpp.llama_model_n_layer(model.pointer) == model.header.layers == 4
    assert llama_cpp.llama_model_n_layer_nextn(model.pointer) == model.header.heads == 1
    assert llama_cpp.llama_model_n_embd_out(model.pointer) == WIDTH


def state_rows(context, flags, states):
    """Logits and own state of the last of some pairs, of which those in `flags` are flagged."""
    pairs = PairBatch(np.zeros((8, WIDTH), dtype=np.float32), 0)
    batch = pairs.at(0, CYCLE[: len(states)], states, True)
    for k in range(len(states)):
        batch.logits[k] = k in flags
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context.pointer), 0, 0, -1)
    context.decode(batch)
    last = len(states) - 1
    own = symbols.function("llama_get_embeddings_nextn_ith")(context.pointer, last)
    return context.rows(last, 1)[0].copy(), np.ctypeslib.as_array(own, (WIDTH,)).copy()


@pytest.mark.parametrize("arch", ["hy_v3", "qwen35"])
def test_why_all_rows_are_flagged(opened, arch):
    """With the last row flagged alone, its logits are right and its state is the first row's. Once
    this fails, fewer rows need be flagged.
    """
    _, context = opened(Made(arch, "random"))
    states = np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)
    logits, state = state_rows(context, range(4), states)
    same_logits, other_state = state_rows(context, [3], states)
    np.testing.assert_allclose(same_logits, logits, atol=1e-4)
    assert np.abs(other_state - state).max() > 0.1


def test_why_architectures_are_listed(tmp_path):
    """A model without states hands out zeros, and does not say so."""
    model = Model(write_cycle_llama(tmp_path / "llama.gguf"), OPTIONS)
    context = open_context(model, 64, 8, Event())
    symbols.function("llama_set_embeddings_nextn")(context.pointer, True, False)
    context.run([(0, 0, [65, 66, 67], 1)])
    rows = symbols.function("llama_get_embeddings_nextn")(context.pointer)
    assert not np.ctypeslib.as_array(rows, (3, WIDTH)).any()


def test_a_gap_in_the_pairs_is_refused(opened):
    """Only an empty cache may begin anywhere: a wrong book-keeping cannot pass unseen."""
    _, context = opened(Made())
    zeros = np.zeros((1, WIDTH), dtype=np.float32)
    batch = PairBatch(zeros.repeat(8, axis=0), 0)
    context.decode(batch.at(0, [65], zeros, False))
    with pytest.raises(EngineError, match="status -1"):
        context.decode(batch.at(2, [65], zeros, False))


def test_a_sidecar_has_the_counts_of_its_target(tmp_path):
    """It loads as a second model, with heads alone."""
    path = write_mtp(tmp_path / "mtp-model.gguf", Made("qwen35"), keep=HEADS)
    model = Model(path, OPTIONS, heads=True)
    assert llama_cpp.llama_model_n_layer_nextn(model.pointer) == 1


def test_why_stripped_models_are_loaded_with_other_counts(tmp_path):
    """llama.cpp refuses them as they are. Once this fails, `overrides_for` is not needed."""
    path = write_mtp(tmp_path / "stripped.gguf", Made("qwen35"), keep=TRUNK)
    with library.listening() as errors:
        found = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
    assert not found
    assert "not found" in "; ".join(errors())
    model = Model(path, OPTIONS)
    assert llama_cpp.llama_model_n_layer(model.pointer) == 4
