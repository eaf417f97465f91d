"""Tokens, and whether two models speak the same ones."""

from __future__ import annotations

import llama_cpp
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.vocabulary import Vocabulary
from tests.tiny_gguf import EOS, IM_END, Tiny, write_llama, write_tokenizer

GREEDY = Sampling(temperature=0, ignore_eos=True)
EAGER = Speculation(draft_min_prob=0, draft_max=4)


@pytest.fixture(scope="module")
def vocabulary(tiny_files):
    return Model(tiny_files.target, ModelOptions()).vocabulary


def test_text_there_and_back(vocabulary):
    """Any text, special tokens and broken bytes included, survives tokenizing."""
    text = "hello <|im_start|>wörld\n\U0001f98a"
    ids = vocabulary.tokenize(text)
    assert vocabulary.detokenize(ids, special=True) == text
    assert 261 in ids
    assert 261 not in vocabulary.tokenize(text, special=False)
    assert vocabulary.detokenize(ids) == text.replace("<|im_start|>", "")
    assert vocabulary.tokenize("") == []
    assert vocabulary.detokenize(vocabulary.tokenize("é")[:1]) == "\ufffd"
    assert vocabulary.detokenize(vocabulary.tokenize("\ud800")) == "?"  # no UTF-8 has this


def test_tokenizing_long_text(vocabulary):
    """The buffer grows with the text: a token can hold several bytes or less than one."""
    assert len(vocabulary.tokenize("hello" * 20_000)) == 20_000


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "rwkv", "plamo2"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_flags_of_every_kind_of_tokenizer(tmp_path, kind, add_bos):
    """llama.cpp's own tokens, and never an end token behind them."""
    found = []
    for add_eos in (False, True):
        path = write_tokenizer(tmp_path / "some.gguf", kind, add_bos, add_eos)
        llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        vocabulary = Vocabulary(llama._model.model, owner=llama)
        for text in ("he said", "<s>he </s> x", " a", "</s>", ""):
            ours = vocabulary.tokenize(text)
            bare = vocabulary.tokenize(text, add_bos=False)
            assert ours == [vocabulary.bos] * vocabulary.adds_bos + bare
            if not add_eos:
                theirs = llama.tokenize(text.encode(), add_bos=True, special=True)
                assert ours == theirs
            found.append(ours)
        llama.close()
    half = len(found) // 2
    assert found[:half] == found[half:]


def test_end_tokens(vocabulary):
    """End of text and end of turn both end an answer."""
    assert set(vocabulary.end_tokens) >= {EOS, IM_END}


@pytest.mark.parametrize("padded", ["target", "draft"])
@pytest.mark.parametrize("padding", [1, 128])
def test_padding_is_tolerated(tmp_path, padded, padding):
    """Up to 128 more ids on either side fit, and the pair decodes as the target alone."""
    sides = {"target": Tiny(), "draft": Tiny(noise=0.05)}
    sides[padded] = sides[padded].but(padding=padding)
    files = [write_llama(tmp_path / f"{name}.gguf", tiny) for name, tiny in sides.items()]
    with load_pair(*files) as pair:
        limits = Limits(max_tokens=30)
        plain = Decoder.for_pair(pair, GREEDY, Speculation(mode="off")).answer([1, 2], limits)
        fast = Decoder.for_pair(pair, GREEDY, EAGER).answer([1, 2], limits)
        assert fast.tokens == plain.tokens
        assert fast.tally.drafted > 0


@pytest.mark.parametrize(
    ("changed", "why", "kind"),
    [
        ({"padding": 129}, "392 tokens, not 263", "foreign"),  # one more than llama.cpp tolerates
        ({"changed": ((97, "QQ"), (120, "ZZ"))}, "token 97 is 'QQ', not", "mapped"),
        ({"add_bos": True}, "first token", "foreign"),  # it would be out of step
    ],
)
def test_the_first_difference_is_named(changed, why, kind, tmp_path, tiny_files):
    """What llama.cpp says only in its debug log. Such a draft works by its text."""
    draft = write_llama(tmp_path / "other.gguf", Tiny(**changed))
    with load_pair(tiny_files.target, draft) as pair:
        assert pair.draft_cache().kind == kind
        assert any("another tokenizer" in note and why in note for note in pair.notes)
        limits = Limits(max_tokens=12)
        plain = Decoder.for_pair(pair, GREEDY, Speculation(mode="off")).answer([65, 66], limits)
        fast = Decoder.for_pair(pair, GREEDY, EAGER).answer([65, 66], limits)
        assert fast.tokens == plain.tokens


def test_names_of_the_first_five_ids_may_differ(tmp_path, tiny_files):
    """llama.cpp compares from id 5 on."""
    draft = write_llama(tmp_path / "draft.gguf", Tiny(changed=((4, "renamed"),)))
    with load_pair(tiny_files.target, draft) as pair:
        assert pair.draft_cache() is not None


def test_a_padded_id_beyond_the_draft_is_survived(tmp_path):
    """A target may emit an id that the draft's vocabulary lacks: then it decodes plainly."""
    target = write_llama(tmp_path / "target.gguf", Tiny(padding=8))
    draft = write_llama(tmp_path / "draft.gguf", Tiny())
    only_padding = Sampling(temperature=0, logit_bias={265: 1000.0})
    with load_pair(target, draft) as pair:
        answer = Decoder.for_pair(pair, only_padding, EAGER).answer([1, 2], Limits(max_tokens=5))
        assert answer.tokens == [265] * 5
        assert answer.tally.drafted <= 4  # the first round could still draft


def test_ids_beyond_the_target_are_never_drafted(tmp_path):
    """A padded draft proposes only what the target can read, however much it likes its padding."""
    target = write_llama(tmp_path / "target.gguf", Tiny())
    draft = write_llama(tmp_path / "draft.gguf", Tiny(padding=8, noise=0.05))
    seen = []
    with load_pair(target, draft) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, EAGER)
        real = decoder.drafter.steps
        biased = decoder.drafter.sampler

        def steps(tokens, plan):
            seen.append((yield from real(tokens, plan)))
            return seen[-1]

        def likes_padding(row, history, drafted=()):
            assert len(row) == 263
            return biased(row, history, drafted)

        likes_padding.history = biased.history
        decoder.drafter.steps, decoder.drafter.sampler = steps, likes_padding
        decoder.answer([1, 2], Limits(max_tokens=20))
    assert max(max(draft.tokens) for draft in seen if len(draft)) < 263
