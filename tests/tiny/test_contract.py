"""What the engine takes for granted of llama.cpp: each fact alone, so that a change is found."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_cpp import _lib

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.quantize import FILE_TYPES, quantize
from dspark_gguf.engine.sequence import open_cache
from dspark_gguf.errors import EngineError
from tests.fakes import rows_of

CONTEXT_FIELDS = """
    n_ctx n_batch n_ubatch n_outputs_max n_outputs_max_per_seq n_threads n_threads_batch
    flash_attn_type type_k type_v offload_kqv swa_full n_rs_seq rope_scaling_type rope_freq_base
    rope_freq_scale yarn_orig_ctx yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow
"""
MODEL_FIELDS = "n_gpu_layers split_mode main_gpu load_mode tensor_split devices use_extra_bufts"


@pytest.fixture
def context(tiny_files):
    model = Model(tiny_files.target, ModelOptions())
    return open_cache(model, n_ctx=64, max_rows=9, interrupt=Event())


def test_parameter_fields_exist():
    """ctypes accepts any attribute in silence: a renamed field would be an ignored option."""
    context = {name for name, *_ in llama_cpp.llama_context_params._fields_}
    assert context >= set(CONTEXT_FIELDS.split())
    model = {name for name, *_ in llama_cpp.llama_model_params._fields_}
    assert model >= set(MODEL_FIELDS.split())
    quantization = {name for name, *_ in llama_cpp.llama_model_quantize_params._fields_}
    assert quantization >= {"ftype", "allow_requantize", "nthread"}


def test_defaults_mean_what_we_leave_to_them():
    """-1 and 0 are llama.cpp's words for `auto`, `all` and `from the model`."""
    params = llama_cpp.llama_context_default_params()
    assert (params.flash_attn_type, params.rope_scaling_type) == (-1, -1)
    assert (params.rope_freq_base, params.yarn_orig_ctx, params.yarn_ext_factor) == (0, 0, -1)
    assert llama_cpp.llama_model_default_params().load_mode == -1


def test_positions_must_go_on_from_the_cache(context):
    """A gap in the positions is refused, so a wrong book-keeping cannot pass unseen."""
    prefill(context, [1, 2, 3])
    context.tokens.append(9)  # now the books are wrong
    with pytest.raises(EngineError, match="status -1"):
        rows_of(context, [4])


def test_rows_exist_only_where_they_were_asked_for(context):
    """A prompt without rows has none; asking for one is an error, not another position's row."""
    prefill(context, [1, 2, 3])
    rows_of(context, [4, 5])
    with pytest.raises(EngineError, match="no logits at row"):
        context.context.rows(7, 1)


def test_the_library_tells_where_it_lies():
    """Beside its parts: what their files are, the build is."""
    names = [path.name for path in Path(_lib._name).parent.iterdir()]
    assert any("llama" in name for name in names)
    assert any("ggml-cpu" in name for name in names)


def test_devices_are_listed():
    """ggml's device list is there, and holds the CPU."""
    assert "CPU" in library.device_pointers()
    assert "CPU" not in library.gpu_names()


@pytest.mark.parametrize("name", ["F16", "Q8_0"])
def test_quantize(tiny_files, tmp_path, name):
    """llama_model_quantize writes the file type that was asked for, also from a quantized file."""
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    quantize(tiny_files.target, first, "Q8_0")
    quantize(first, again, name)
    model = Model(again, ModelOptions())
    assert llama_cpp.llama_model_ftype(model.pointer) == FILE_TYPES[name]
    with pytest.raises(EngineError):
        quantize(tiny_files.target, Path("/nonexistent/x.gguf"), "Q8_0")


def test_logits_are_the_c_arrays_type(context):
    """Rows are float32, as the binding says."""
    assert rows_of(context, [1])[0].dtype == np.float32
