"""Arguments of a wrong kind get a sentence at once, and leave everything else as it was."""

from __future__ import annotations

from contextlib import closing

import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from dspark_gguf import Batcher, Decoder, DSparkLlama, Limits, Sampling, Speculation, load_pair
from dspark_gguf.draft import LookupDrafter
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import Cancelled, UsageError
from tests.tiny.test_python_face import EXACT

GREEDY, FEW, QUIET = Sampling(temperature=0), Limits(max_tokens=4), Speculation(learn=False)


@pytest.fixture(scope="module")
def pair(tiny_files):
    with load_pair(tiny_files.target, "none", conversations=2) as pair:
        yield pair


WRONG = {
    "speculation first": (lambda pair: Decoder.for_pair(pair, QUIET), r"Write Sampling\(...\)"),
    "sampling as a dict": (lambda pair: Decoder.for_pair(pair, {"seed": 1}), "Write Sampling"),
    "speculation as text": (lambda pair: Decoder.for_pair(pair, GREEDY, "on"), "Write Speculation"),
    "a number as limits": (lambda pair: Decoder.for_pair(pair).answer("hi", 5), "5 is given"),
    "of a batch": (lambda pair: Batcher(pair, "on"), "Write Speculation"),
    "nobody in a pass": (lambda pair: Batcher(pair, parallel=0), "Give 1 or more"),
    "fewer than nobody": (lambda pair: Batcher(pair, parallel=-1), "-1 conversations"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_of_decoders_and_batches(pair, what):
    call, message = WRONG[what]
    with pytest.raises(UsageError, match=message):
        call(pair)


@pytest.mark.parametrize("ids", [[10**7, 5], [-1, 5], [5, 263], [1.5, 2], [5, "a"], b"abc"])
def test_ids_that_are_no_tokens(pair, ids):
    with pytest.raises(UsageError, match=r"not a token of|other things|not bytes"):
        Decoder.for_pair(pair, GREEDY, QUIET).answer(ids, FEW)


@pytest.mark.parametrize("first", [{"content": "x"}, {"role": "system", "content": "x"}])
def test_messages_without_a_role(pair, first):
    template = ChatTemplate(
        pair.target, "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    )
    with pytest.raises(UsageError, match="does not accept these messages"):
        template.ids([first, {"content": "hi"}])


def test_one_bad_request_costs_a_batch_nothing(pair):
    """It is refused when it is submitted; the others are answered."""
    batcher = Batcher(pair, QUIET)
    good = batcher.submit([5, 6], GREEDY, FEW)
    for arguments in (
        ([10**7, 5], GREEDY, FEW),
        ([1.5, "a"], GREEDY, FEW),
        ([5, 6], {"temperature": 0}, FEW),
        ([5, 6], GREEDY, {"max_tokens": 4}),
    ):
        with pytest.raises(UsageError):
            batcher.submit(*arguments)
    list(batcher)
    assert len(good.answer.tokens) == 4


def test_what_strikes_while_a_request_begins_takes_no_place(pair, monkeypatch):
    """Its place is free again, and it begins with the next step."""
    batcher = Batcher(pair, QUIET)
    requests = [batcher.submit([5, k], GREEDY, FEW) for k in range(3)]
    begin = Decoder.for_pair

    def struck(*_, **__):
        raise Cancelled

    monkeypatch.setattr(Decoder, "for_pair", struck)
    for _ in range(5):
        with pytest.raises(Cancelled):
            batcher.step()
    monkeypatch.setattr(Decoder, "for_pair", begin)
    list(batcher)
    assert [len(request.answer.tokens) for request in requests] == [4, 4, 4]


def test_of_pairs(tiny_files):
    for options, message in (
        ({"conversations": 0}, "0 conversations"),
        ({"conversations": -1}, "-1 conversations"),
        ({"target_options": {"n_ctx": 64}}, "Write ModelOptions"),
        ({"draft_options": {"n_ctx": 64}}, "Write ModelOptions"),
    ):
        with pytest.raises(UsageError, match=message):
            load_pair(tiny_files.target, "none", **options)


def test_a_llama_of_nothing():
    """It would have been the demo pair."""
    with pytest.raises(UsageError, match="model_path cannot be of type NoneType"):
        DSparkLlama(None, **EXACT)


def test_prompt_lookup_as_llama_cpp_python_asks_for_it(tiny_files):
    llama = DSparkLlama(str(tiny_files.target), draft_model=LlamaPromptLookupDecoding(), **EXACT)
    with closing(llama):
        assert isinstance(llama.drafter, LookupDrafter)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_vocabulary_alone_answers_nothing(tiny_files, mode):
    llama = DSparkLlama(
        str(tiny_files.target), vocab_only=True, speculation=Speculation(mode=mode), **EXACT
    )
    assert llama.tokenize(b"abc")
    for use in (
        lambda: llama.create_completion("abc", max_tokens=1),
        lambda: llama.eval([1, 2]),
        lambda: next(llama.generate([1, 2])),
    ):
        with pytest.raises(UsageError, match="vocab_only=True loaded no weights"):
            use()
    llama.close()
