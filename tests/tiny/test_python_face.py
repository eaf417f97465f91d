"""Python as a user guesses it: text as a prompt, options with a typo, figures of an answer."""

from __future__ import annotations

from contextlib import closing

import pytest

from dspark_gguf import Batcher, Decoder, DSparkLlama, Limits, Sampling, Speculation, load_pair
from dspark_gguf.draft import NoDrafter
from dspark_gguf.errors import UsageError
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import Fixed
from dspark_gguf.testing import ByteTokenizer, TableModel, reciting_rows
from dspark_gguf.verify import match

GREEDY, FEW = Sampling(temperature=0), Limits(max_tokens=6)
EXACT = {
    "n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tiny_files):
    with load_pair(tiny_files.target, conversations=2) as pair:
        yield pair


def test_a_prompt_is_text_messages_or_ids(pair):
    decoder = Decoder.for_pair(pair, GREEDY, Speculation(learn=False))
    messages = [{"role": "user", "content": "Hello"}]
    ids = pair.template.encode(messages)
    wanted = decoder.answer(ids, FEW).tokens
    assert decoder.answer("Hello", FEW).tokens == wanted
    assert decoder.answer(messages, FEW).tokens == wanted
    assert decoder.answer(tuple(ids), FEW).tokens == wanted
    with pytest.raises(UsageError, match="empty"):
        decoder.answer([], FEW)


def test_so_are_those_of_a_batch(pair):
    batcher = Batcher(pair, Speculation(learn=False))
    messages = [{"role": "user", "content": "Hello"}]
    prompts = ("Hello", messages, pair.template.encode(messages))
    requests = [batcher.submit(prompt, GREEDY, FEW) for prompt in prompts]
    list(batcher)
    one, two, three = (request.answer.tokens for request in requests)
    assert one == two == three


def test_without_a_template_only_ids_are_prompts():
    target = TableModel(reciting_rows(list(b"abc"), 257, 256))
    decoder = Decoder(target, ByteTokenizer(), NoDrafter(), Fixed(0), match, Sampler(GREEDY))
    assert decoder.answer(list(b"a")).text == "bc"
    with pytest.raises(UsageError, match="token ids"):
        decoder.answer("a")


@pytest.mark.parametrize(
    ("option", "meant"),
    [("n_ctxx", "n_ctx"), ("draft_modell", "draft_model"), ("n_gpu_layer", "n_gpu_layers")],
)
def test_a_typo_that_llama_would_ignore(tiny_files, option, meant):
    """`Llama` takes any keyword, and says nothing; frameworks pass on some that are none."""
    with pytest.raises(UsageError, match=f"{option}.*Write {meant}"):
        DSparkLlama(str(tiny_files.target), **{option: 3}, **EXACT)
    DSparkLlama(str(tiny_files.target), n_parts=-1, rpc_servers=None, **EXACT).close()


def test_draft_is_what_other_tools_call_it(tiny_files):
    always = Speculation(mode="on", draft_min_prob=0.0, draft_max=3)
    llama = DSparkLlama(
        str(tiny_files.target), draft=str(tiny_files.draft), speculation=always, **EXACT
    )
    with closing(llama):
        assert "draft model" in llama.summary
        assert llama.tally.rounds == 0
        llama.create_completion([1, 2, 3], max_tokens=20, temperature=0)
        assert llama.tally.tokens >= 20
        assert llama.tally.drafted > 0
        assert llama.tally.tokens_per_second > 0
