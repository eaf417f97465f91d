"""Where an answer ends and what text it has, however its tokens are spread over rounds."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest

from dspark_gguf.config import Limits
from dspark_gguf.ending import Ending
from dspark_gguf.testing import ByteTokenizer
from tests.properties import given, settings, st

TOKENIZER = ByteTokenizer()
END = TOKENIZER.end

ALPHABET = "abé漢🦜"


class Pieces:
    """Tokens of several characters, of parts of characters, of both, and of nothing.

    Few letters, so that stop strings are met, begun and overlapping; 1- to 4-byte characters.
    """

    pieces = (
        b"", b"\xff", b"\xf0\x9f", b"\xa6\x9c", b"ab\xc3", b"\xa9b", b"ab", b"aab", b"bab",
        *(letter.encode() for letter in ALPHABET),
    )  # fmt: skip
    n_vocab = len(pieces) + 1
    end_tokens = (len(pieces),)

    def piece(self, token):
        return (*self.pieces, b"")[token]


PIECES = Pieces()
STOPS = st.lists(st.text("abé漢", min_size=1, max_size=4), max_size=3).map(tuple)


def read(limits, rounds, tokenizer=TOKENIZER):
    """Text, tokens and reason of an answer in these rounds, and what was said in each."""
    ending = Ending(limits, tokenizer)
    tokens, said = [], []
    for fresh in rounds:
        kept, text = ending.take(fresh)
        tokens += kept
        said.append(text)
        if ending.finish_reason:
            break
    else:
        said.append(ending.flush())
    return "".join(said), tokens, ending.finish_reason, said


def split(tokens, cuts):
    """`tokens` in rounds that end at `cuts`."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(tokens)}), len(tokens)]
    return [tokens[a:b] for a, b in pairwise(edges)]


def expected(limits, tokens):
    """The same from whole prefixes: the first token after which a reason holds."""
    data, text = b"", ""
    for count, token in enumerate(tokens, 1):
        data += PIECES.piece(token)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        places = [text.find(stop) for stop in limits.stop if stop in text]
        if token in PIECES.end_tokens or places:
            return text[: min(places, default=None)], tokens[:count], "stop"
        if count == limits.max_tokens:
            return text, tokens[:count], "length"
    return text, tokens, None


@settings(max_examples=500, deadline=None)
@given(
    tokens=st.lists(st.integers(0, PIECES.n_vocab - 1), max_size=25),
    stop=STOPS,
    budget=st.none() | st.integers(1, 20),
    cuts=st.lists(st.integers(1, 25)),
)
def test_any_split_into_rounds_ends_on_the_same_token_with_the_same_text(
    tokens, stop, budget, cuts
):
    """Speculation spreads tokens over rounds in its own way: neither text nor end may show it."""
    limits = Limits(stop=stop, max_tokens=budget)
    text, kept, reason, _ = read(limits, split(tokens, cuts), PIECES)
    assert (text, kept, reason) == expected(limits, tokens)


@settings(max_examples=500, deadline=None)
@given(text=st.text(ALPHABET, max_size=20), stop=STOPS)
def test_text_is_never_taken_back_and_held_no_longer_than_needed(text, stop):
    """After each token, all whole characters are out but the longest possible start of a stop."""
    limits = Limits(stop=stop)
    ending, out, complete = Ending(limits, TOKENIZER), "", codecs.getincrementaldecoder("utf-8")()
    seen = ""
    for token in TOKENIZER.tokenize(text):
        out += ending.take([token])[1]
        seen += complete.decode(bytes([token]))
        if ending.finish_reason:
            assert out == seen[: min(seen.find(each) for each in stop if each in seen)]
            return
        starts = {each[:k] for each in stop for k in range(1, len(each))}
        held = max((len(start) for start in starts if seen.endswith(start)), default=0)
        assert out == seen[: len(seen) - held]
    assert out + ending.flush() == text


def test_a_character_in_several_tokens_comes_whole():
    """Four tokens of one character: nothing, nothing, nothing, the character."""
    text, _, _, said = read(Limits(), [[byte] for byte in "🦜!".encode()])
    assert text == "🦜!"
    assert said == ["", "", "", "🦜", "!", ""]


def test_a_stop_string_over_tokens_and_rounds():
    """It is held back from its first character on, and is no part of the text."""
    rounds = [list(b"so far"), list(b" so E"), list(b"N"), list(b"D of story")]
    text, tokens, reason, said = read(Limits(stop=("END",)), rounds)
    assert (text, reason) == ("so far so ", "stop")
    assert bytes(tokens) == b"so far so END"
    assert said == ["so far", " so ", "", ""]


def test_a_start_of_a_stop_string_that_goes_on_otherwise_is_text():
    """Held text comes out as soon as it can be no stop string any more, or at the end."""
    _, _, _, said = read(Limits(stop=("END",)), [list(b"an EN"), list(b"E"), list(b"N")])
    assert said == ["an ", "EN", "", "EN"]


@pytest.mark.parametrize(
    ("limits", "text", "reason"),
    [
        (Limits(max_tokens=4), "stop", "length"),
        (Limits(max_tokens=4, stop="op"), "st", "stop"),
        (Limits(max_tokens=3, stop="op"), "sto", "length"),
        (Limits(stop=("top", "stop")), "", "stop"),
        (Limits(), "stop", None),
    ],
)
def test_of_two_reasons_on_one_token_the_stop_wins(limits, text, reason):
    """Budget and stop string end on the same token: `stop`; the earliest start cuts the text."""
    assert read(limits, [list(b"stop")])[::2][:2] == (text, reason)


def test_an_end_token_ends_and_belongs_to_the_tokens():
    """It has no text, and a character that it cuts off is dropped."""
    text, tokens, reason, _ = read(Limits(), [[*"ü".encode()[:1], END, 65]])
    assert (text, tokens, reason) == ("", [0xC3, END], "stop")


def test_room_is_the_smaller_of_budget_and_context():
    """It shrinks with every token taken, and is what a plan may not exceed."""
    ending = Ending(Limits(max_tokens=3), TOKENIZER)
    assert (ending.room(10), ending.room(2)) == (3, 2)
    ending.take([65, 66])
    assert ending.room(10) == 1
    assert Ending(Limits(), TOKENIZER).room(10) == 10


def test_tokens_may_be_spelled_out_but_never_the_end():
    end = PIECES.end_tokens[0]
    ending = Ending(Limits(), PIECES, {0: b"<x>", end: b"</x>"})
    assert ending.take([6, 0, end]) == ([6, 0, end], "ab<x>")
    assert ending.finish_reason == "stop"
