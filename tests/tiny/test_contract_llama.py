"""What `DSparkLlama` takes for granted of `llama_cpp.Llama`: private names and what they mean."""

from __future__ import annotations

import ctypes
import inspect
from importlib.metadata import requires

import llama_cpp
import numpy as np
import pytest
from packaging.requirements import Requirement

from dspark_gguf.dropin.llama import DSparkLlama


def test_what_the_drop_in_relies_on_in_llama(tiny_files):
    """Private names of `Llama` and what they mean, for the versions that pyproject.toml allows."""
    llama = llama_cpp.Llama(str(tiny_files.target), n_ctx=64, verbose=False)
    assert isinstance(llama.tokenizer_, llama_cpp.LlamaTokenizer)
    assert llama._logits_all is False
    assert llama._n_vocab == llama.n_vocab()
    assert llama_cpp.llama_model_n_ctx_train(llama._model.model) > 0
    llama.eval([1, 2, 3])
    assert (llama.n_tokens, llama._requires_eval) == (3, False)
    assert llama._input_ids.tolist() == [1, 2, 3]
    assert llama._ctx.kv_cache_seq_rm(-1, 2, -1) is True
    llama.n_tokens = 2
    llama._batch.set_batch(batch=[3, 4], n_past=2, logits_all=True)
    llama._ctx.decode(llama._batch)
    sampler = llama._init_sampler(temp=0.0)
    for row in (-2, -1):
        logits = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, row)
        best = int(np.ctypeslib.as_array(logits, (llama._n_vocab,)).argmax())
        assert sampler.sample(llama._ctx, row) == best
    assert "draft_model" in llama.__getstate__()
    assert hasattr(llama, "_stack")
    llama.close()


def test_the_parameters_of_the_model_are_an_attribute(tiny_files, monkeypatch):
    """`Llama` sets it once, from llama.cpp's defaults, and loads the model with it."""
    assigned, loaded = [], []

    class Watched(llama_cpp.Llama):
        @property
        def model_params(self):
            return assigned[-1]

        @model_params.setter
        def model_params(self, params):
            assigned.append(params)

    class Model(llama_cpp._internals.LlamaModel):
        def __init__(self, *, params, **options):
            loaded.append(params)
            super().__init__(params=params, **options)

    monkeypatch.setattr(llama_cpp._internals, "LlamaModel", Model)
    Watched(str(tiny_files.target), n_ctx=64, verbose=False).close()
    assert loaded == assigned
    assert [type(params) for params in assigned] == [llama_cpp.llama_model_params]


def test_what_grammars_and_text_of_the_drop_in_rely_on(tiny_files):
    """More private names of `Llama`: grammar, sampler, tokenizer, books, how it completes."""
    llama = llama_cpp.Llama(str(tiny_files.target), n_ctx=64, verbose=False)
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "a"', verbose=False)
    assert (grammar._grammar, grammar._root) == ('root ::= "a"', "root")
    assert llama_cpp.llama_vocab_n_tokens(llama._model.vocab) == llama.n_vocab()
    assert llama_cpp.llama_sampler_chain_n(llama._init_sampler(temp=0.0).sampler) == 2
    assert isinstance(llama._mirostat_mu, ctypes.c_float)
    assert llama._sampler is None
    assert llama._model.detokenize([3, 4], special=True) == llama.detokenize([3, 4], special=True)
    assert llama._model.token_bos() == llama.token_bos()
    assert inspect.isgeneratorfunction(llama_cpp.Llama._create_completion)
    assert inspect.isgeneratorfunction(llama_cpp.Llama.generate)
    assert {"logprobs", "echo"} <= inspect.signature(llama._create_completion).parameters.keys()
    for name in ("_scores", "_input_ids"):
        assert isinstance(getattr(llama_cpp.Llama, name), property)
    asked = []
    llama.generate = lambda tokens, **options: (asked.append(options), iter(()))[1]
    llama.create_completion("abc", max_tokens=2)
    assert asked[0].keys() >= {"temp", "grammar", "logits_processor", "stopping_criteria"}
    llama.close()


def parameters(function):
    return inspect.signature(function).parameters


#: What `Llama` had when each was looked at. A version that has more fails here: does the drop-in
#: keep its promise there too?
PUBLIC = """
close create_chat_completion create_chat_completion_openai_v1 create_completion create_embedding
ctx detokenize embed eval eval_logits eval_tokens from_pretrained generate load_state
logits_to_logprobs longest_token_prefix model n_ctx n_embd n_vocab pooling_type reset sample
save_state set_cache set_seed token_bos token_eos token_nl tokenize tokenizer
"""
OPTIONS = """
self model_path n_gpu_layers split_mode main_gpu tensor_split vocab_only use_mmap use_mlock
kv_overrides seed n_ctx n_batch n_ubatch n_threads n_threads_batch rope_scaling_type pooling_type
attention_type rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast
yarn_beta_slow yarn_orig_ctx logits_all embedding offload_kqv flash_attn op_offload swa_full no_perf
last_n_tokens_size lora_base lora_scale lora_path numa chat_format chat_handler draft_model
tokenizer type_k type_v spm_infill verbose kwargs
"""


def test_what_llama_has():
    """Methods, properties and options of this version."""
    assert [name for name in sorted(dir(llama_cpp.Llama)) if name[0] != "_"] == PUBLIC.split()
    assert list(parameters(llama_cpp.Llama.__init__)) == OPTIONS.split()


@pytest.mark.parametrize("name", [*PUBLIC.split(), "__call__", "__getstate__", "__setstate__"])
def test_signatures(name):
    """Every argument of `Llama` in its place, with its default; ours come after, by keyword."""
    theirs, ours = (getattr(kind, name) for kind in (llama_cpp.Llama, DSparkLlama))
    if not callable(theirs):
        assert isinstance(ours, property)
        return
    wanted, found = parameters(theirs), parameters(ours)
    for number, parameter in enumerate(wanted.values()):
        if parameter.kind is not parameter.VAR_KEYWORD:
            mine = list(found.values())[number]
            assert (mine.name, mine.kind, mine.default) == (
                parameter.name, parameter.kind, parameter.default,
            )  # fmt: skip
    for extra in list(found.values())[len(wanted) :]:
        assert extra.kind in (extra.KEYWORD_ONLY, extra.VAR_KEYWORD)


def test_the_constructor():
    """The path by position or by name, everything else by name; what is not ours is passed on."""
    wanted, found = parameters(llama_cpp.Llama.__init__), parameters(DSparkLlama.__init__)
    assert found["options"].kind is inspect.Parameter.VAR_KEYWORD
    for name in found.keys() & wanted.keys():
        assert (found[name].kind, found[name].default) == (wanted[name].kind, wanted[name].default)
    assert found.keys() - wanted.keys() == {"draft", "draft_options", "speculation", "options"}


def test_the_version_is_one_that_was_tried():
    """The private names belong to versions: pyproject.toml allows no others."""
    (wanted,) = (
        Requirement(line)
        for line in requires("dspark-gguf")
        if line.startswith("llama-cpp-python") and "extra" not in line
    )
    assert wanted.specifier.contains(llama_cpp.__version__)
    assert {each.operator for each in wanted.specifier} >= {">=", "<"}
