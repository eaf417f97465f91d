"""A draft with another tokenizer: what it proposes spells its text, and answers stay the same."""

from __future__ import annotations

import random

import pytest

from dspark_gguf import Batcher, Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.draft.foreign import ForeignDrafter, ForeignText, aligned
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench.report import measure_extras
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.measure.trace import record
from tests.tiny_gguf import Tiny, write_llama

HARD = [
    "plain words, and more of them",
    "  def f(x):\n\tif x:\r\n        return x\n\n\n",
    "1234567890123 3.14159 0x7f",
    "https://example.org/a?b=c&d=%20#e",
    "naïve café — “quoted” …",
    "日本語のテキスト、漢字。한국어",
    "👩‍👩‍👧‍👦🇩🇪 é a̐ ö",
    "<|im_end|> <|im_start|>user\nin the user's own text",
    "    leading and trailing    ",
    "\n\n",
    "a",
]
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=6, learn=False)


@pytest.fixture(scope="module")
def pair(demo_files, tmp_path_factory):
    """The demo target, and a tiny random draft whose tokens are bytes."""
    draft = write_llama(tmp_path_factory.mktemp("foreign") / "bytes.gguf", Tiny(context=2048))
    options = ModelOptions(n_ctx=2048)
    with load_pair(demo_files[0], draft, target_options=options, conversations=2) as pair:
        yield pair


@pytest.fixture(params=["to words", "to bytes"])
def both(pair, request):
    """Both vocabularies, in both directions."""
    words, letters = pair.vocabulary, pair.draft_cache().model.vocabulary
    return (words, letters) if request.param == "to words" else (letters, words)


def spell(vocabulary, tokens, special=False):
    return b"".join(vocabulary.piece(token, special=special) for token in tokens)


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("before", ["", "Some text", "def f(x):\n    ", "日本", "x = 12"])
def test_what_is_proposed_spells_the_text(both, before, text):
    target, _ = both
    committed = target.tokenize(before, add_bos=False)
    said = aligned(target, committed, text)
    assert spell(target, said) in (text.encode(), b"")
    if before != "x = 12":  # where a number would be one token with what comes
        assert said
    assert not set(said) & set(target.end_tokens)


def test_it_follows_whatever_is_committed(both):
    """Grown and cut at random, it always spells the text, but for bytes that are none."""
    target, draft = both
    rng = random.Random(4)
    text = ForeignText(target, draft)
    tokens = []
    everything = target.tokenize("\n".join(HARD) * 3, add_bos=False)
    place = 0
    for _ in range(200):
        if tokens and rng.random() < 0.3:
            del tokens[rng.randrange(max(0, len(tokens) - 12), len(tokens)) :]
            text.cut(len(tokens))
        count = rng.randrange(1, 6)
        tokens += [everything[(place + k) % len(everything)] for k in range(count)]
        place += count
        text.follow(tokens)
        whole = spell(target, tokens, special=True)
        said = spell(draft, text.ids, special=True)
        assert said.decode() == whole.decode("utf-8", "ignore")


class Counted(list):
    """Tokens that count how many of them were asked for."""

    asked = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.asked += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self):
        self.asked += len(self)
        return super().__iter__()


def test_only_the_end_is_read_again(both, monkeypatch):
    """Of a conversation of 32,000 tokens a few, in a round."""
    target, draft = both
    text = ForeignText(target, draft)
    sentence = target.tokenize("A sentence of some words. ", add_bos=False)
    tokens = Counted(sentence * (32_000 // len(sentence)))
    text.follow(tokens)
    text.same = len(text.ids)
    real, asked, tokens.asked = type(draft).tokenize, [], 0
    monkeypatch.setattr(
        type(draft), "tokenize", lambda self, t, **o: asked.append(len(t)) or real(self, t, **o)
    )
    more = target.tokenize(" And more.", add_bos=False)
    tokens += more
    text.follow(tokens)
    assert 0 < sum(asked) < 300
    assert tokens.asked == len(more)
    assert len(text.ids) - 60 < text.same <= len(text.ids)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_are_those_of_plain_decoding(pair, temperature):
    sampling = Sampling(temperature=temperature, seed=3)
    answers = []
    for speculation in (Speculation(mode="off"), ALWAYS):
        decoder = Decoder.for_pair(pair, sampling, speculation)
        decoder.reset()
        answers.append(decoder.answer("Write a line of Python.", Limits(max_tokens=24)))
    assert isinstance(decoder.drafter, ForeignDrafter)
    assert answers[0].tokens == answers[1].tokens
    assert answers[1].tally.drafted > 0


def test_in_a_batch_too(pair):
    batcher = Batcher(pair, ALWAYS)
    greedy, few = Sampling(temperature=0), Limits(max_tokens=12)
    requests = [batcher.submit(text, greedy, few) for text in ("Say one.", "Count to three.")]
    list(batcher)
    assert all(request.answer.tally.drafted > 0 for request in requests)


def test_a_draft_that_knows_the_text_is_right(demo_files, pair):
    """The target's own guesses, by way of letters: nearly all of them stand."""
    letters = pair.draft_cache().model.vocabulary
    target = pair.vocabulary
    text = "The quick brown fox jumps over the lazy dog, twice: 12 times 12 is 144.\n    x = 1\n"
    tokens = target.tokenize(text, add_bos=False)
    right = total = 0
    for k in range(3, len(tokens) - 8):
        said = text.encode()[len(spell(target, tokens[:k])) :][:24]
        guess = aligned(target, tokens[:k], said.decode("utf-8", "ignore"))[:-1]
        total += len(guess)
        for one, other in zip(guess, tokens[k:], strict=False):
            if one != other:
                break
            right += 1
    assert letters.n_vocab < target.n_vocab
    assert right >= 0.95 * total > 20


def test_no_chains_of_it_are_recorded(pair):
    """The target's ids are other texts to the draft, or none: nothing is taught by that."""
    with pytest.raises(UsageError, match="has no chains of the target's tokens"):
        record(pair, Prompt("chat", [{"role": "user", "content": "x"}]), 2, 2)
    prompts = [Prompt("chat", [{"role": "user", "content": x}]) for x in "ab"]
    assert measure_extras(pair, prompts, 2, print).reliability is None
