"""The text between two tokenizers, by property: of every kind of tokenizer, in both directions."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import llama_cpp
import numpy as np
import pytest

from dspark_gguf.draft.foreign import ForeignDrafter, ForeignText, aligned
from dspark_gguf.engine.protocol import run_alone
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.schedule import Fixed
from tests.properties import assume, example, given, settings, st
from tests.tiny_gguf import write_tokenizer

KINDS = ("gpt2", "llama", "rwkv")
WORDS = [
    *("he", " he", "\n", "\r\n", "  ", "\t", "12345", "<s>", "</s>", "<unk>", "\x00", "heheh", " "),
    *("é", "e\u0301", "日本", "한", "👩\u200d👩\u200d👧", "🇩🇪", "\u200d", "\ufeff", "—", "▁"),
    "https://a.b/?c=%20",
]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=8).map("".join)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("words"), {}
    for kind in KINDS:
        path = write_tokenizer(folder / f"{kind}.gguf", kind, kind == "llama", False)
        llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        found[kind] = Vocabulary(llama._model.model, owner=llama)
    return found


ways = pytest.mark.parametrize("way", list(permutations(KINDS, 2)), ids=" to ".join)


def spell(vocabulary, tokens, special=False):
    return b"".join(vocabulary.piece(token, special=special) for token in tokens)


def bare(data):
    return data.replace(b" ", b"")


@ways
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_spells_whatever_is_committed(vocabularies, way, data):
    """Any ids, special ones and halves of characters too, grown and cut anywhere: the draft reads
    the text, all of it that is text, and what is kept of its tokens is as it was.
    """
    target, draft = (vocabularies[kind] for kind in way)
    text, tokens = ForeignText(target, draft), []
    some = st.lists(st.integers(0, target.n_vocab - 1), max_size=6)
    said = texts.map(lambda part: target.tokenize(part, special=False, add_bos=False))
    for _ in range(data.draw(st.integers(1, 6))):
        if tokens and data.draw(st.booleans()):
            del tokens[data.draw(st.integers(0, len(tokens))) :]
            text.cut(len(tokens))
        tokens += data.draw(some | said)
        before, text.same = list(text.ids), len(text.ids)
        text.follow(tokens)
        assert text.ids[: text.same] == before[: text.same]
        whole = spell(target, tokens, special=True)
        assume("\u2581".encode() not in whole)  # which some tokenizers read as a space
        read = spell(draft, text.ids[len(text._first) :], special=True)
        # Some put a space before all text, and behind special tokens; one that is in the text may
        # part two bytes that would be a character together.
        assert bare(read).decode() == whole.decode("utf-8", "ignore").replace(" ", "")
        if bare(read) == bare(whole):
            for k, end in enumerate(text._id_ends[len(text._first) :], len(text._first) + 1):
                part = spell(draft, text.ids[len(text._first) : k], special=True)
                assert bare(part) == bare(whole[:end])


@ways
@settings(max_examples=60, deadline=None)
@given(before=texts, text=texts)
def test_what_is_proposed_spells_the_text(vocabularies, way, before, text):
    """Or nothing is proposed; it never holds a token that ends or steers."""
    target = vocabularies[way[0]]
    said = aligned(target, target.tokenize(before, special=False, add_bos=False), text)
    assert spell(target, said) in (text.encode(), b"")
    assert all(target.piece(token) for token in said)


class Reciting:
    """A draft's cache that says these ids, then its end token."""

    n_ctx, kind = 4096, "foreign"

    def __init__(self, vocabulary, ids):
        self.model, self.ids = SimpleNamespace(vocabulary=vocabulary), ids
        self.tokens, self.said = [], 0

    @property
    def length(self):
        return len(self.tokens)

    def reuse_prefix(self, tokens):
        self.tokens = []

    def trim(self, length):
        del self.tokens[length:]

    def decode(self, tokens, n_rows):
        self.tokens += tokens
        row = np.zeros((1, self.model.vocabulary.n_vocab), dtype=np.float32)
        row[0, [*self.ids, self.model.vocabulary.eos][self.said]] = 9.0
        self.said += 1
        return row


@ways
@settings(max_examples=60, deadline=None)
@given(before=texts, text=texts, most=st.integers(1, 8))
@example(before="", text=" he he he he", most=4)
def test_a_draft_is_no_longer_than_planned(vocabularies, way, before, text, most):
    """Though one token of the draft may be several of the target's: there are no rows for more."""
    target, draft = (vocabularies[kind] for kind in way)
    committed = [*target.tokenize(before, special=False, add_bos=False), 70]
    ids = draft.tokenize(text, special=False, add_bos=False)
    drafter = ForeignDrafter(Reciting(draft, ids), target, draft)
    made = run_alone(drafter.steps(committed, Fixed(most).plan(most)))
    assert len(made) <= most
    (segment,) = made.segments
    assert len(segment.scores) == len(segment.tokens) == len(segment.dists)
    said = [token for token in made.tokens if token != target.eot]
    assert spell(draft, ids).startswith(spell(target, said))
