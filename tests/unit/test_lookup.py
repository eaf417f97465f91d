"""Copies from the conversation: the index, the guesses, and the drafter in the loop."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf.config import Limits
from dspark_gguf.draft import LookupDrafter
from dspark_gguf.draft.index import FURTHEST, LEAST, PLACES, RUNS, Index, Match, chain
from dspark_gguf.records import Draft, Segment
from dspark_gguf.schedule import Bounded, Fixed
from dspark_gguf.testing import random_rows, reciting_rows
from tests.fakes import Letters, World

RNG = np.random.default_rng(0)


def brute_force(tokens):
    """The latest places after the longest run that stood before, by comparing everything."""
    end = len(tokens)

    def common(place):
        same = 0
        while same < min(FURTHEST, place) and tokens[place - 1 - same] == tokens[end - 1 - same]:
            same += 1
        return same

    all_ = [Match(place, common(place)) for place in range(LEAST, end)]
    runs = ([match for match in all_ if match.length >= run][-PLACES:] for run in RUNS)
    found = next(filter(None, runs), [])
    return sorted(found, key=lambda match: (match.length, match.place), reverse=True)


@pytest.mark.parametrize("letters", [2, 3, 10])
def test_the_index_finds_what_comparing_everything_finds(letters):
    """After any growing and shrinking."""
    index, tokens = Index(), []
    for _ in range(300):
        if RNG.random() < 0.7:
            fresh = RNG.integers(0, letters, RNG.integers(0, 6)).tolist()
            index.extend(fresh)
            tokens += fresh
        else:
            length = int(RNG.integers(0, len(tokens) + 3))
            index.trim(length)
            del tokens[length:]
        assert index.tokens == tokens
        assert index.matches() == brute_force(tokens)


def test_memory_is_bounded_by_the_tokens_held():
    """One entry a token and run; nothing is left behind by what was taken back."""
    index = Index()
    for _ in range(50):
        index.extend(RNG.integers(0, 5, 100).tolist())
        index.trim(40)
    assert sum(map(len, index._places.values())) == sum(40 - run + 1 for run in RUNS)
    index.trim(0)
    assert not index._places


def test_the_longest_match_goes_first_then_the_latest():
    """Of two places the one with more in common; a draw goes to the later one."""
    index = Index()
    index.extend([1, 2, 3, 7, 0, 2, 3, 8, 0, 1, 2, 3])
    assert index.matches() == [Match(3, 3), Match(7, 2)]
    index.extend([0, 2, 3])
    assert index.matches()[0] == Match(7, 3)


def test_continuations_weigh_by_how_often_they_followed():
    """One 8 against three 9s of the same length: 9, less sure than with nothing against it."""
    texts = [[1, 2, 9], [1, 2, 8], [1, 2, 9], [1, 2, 9], [5, 1, 2]]
    index = Index()
    index.extend([token for text in texts for token in text])
    guesses, scores = chain(index.tokens, index.matches(), 1)
    assert guesses == [9]
    alike = Index()
    alike.extend([token for text in texts if 8 not in text for token in text])
    assert chain(alike.tokens, alike.matches(), 1)[1] > scores


def test_a_longer_match_scores_higher_along_the_chain():
    """Each guess that stands would make the match longer."""
    text = RNG.permutation(50).tolist()
    index = Index()
    index.extend([*text, *text[:2]])
    guesses, scores = chain(index.tokens, index.matches(), 64)
    assert guesses == [*text[2:], *text[:2]]
    assert scores == sorted(scores)
    assert chain(index.tokens, index.matches(), 5) == (guesses[:5], scores[:5])


def lookup(n=8):
    return LookupDrafter(Letters(n))


def test_a_draft_ends_with_an_end_token_and_where_nothing_matches():
    """Nothing follows the end of an answer, and nothing is made up."""
    drafter = lookup(8)
    assert drafter.guess([1, 2, 3, 7, 5, 1, 2], 9)[0] == (3, 7)
    assert drafter.ends((3, 7))
    assert not drafter.ends((3,))
    drafter.restart([], None)
    assert drafter.guess([1, 2, 3], 9) == ((), ())
    assert drafter.propose([1, 2, 3, 4], Bounded(9)).tokens == ()


def test_what_is_drafted_can_be_gone_on_from_and_is_forgotten():
    """Guesses behind tokens that may come to nothing; the index holds what is committed."""
    drafter = lookup()
    tokens = [1, 2, 3, 4, 5, 1]
    assert drafter.guess(tokens, 2, (2, 3))[0] == (4, 5)
    assert drafter.index.tokens == tokens


def test_an_edited_conversation_keeps_its_common_beginning():
    """The index is that of a new one."""
    drafter, tokens = lookup(), RNG.integers(0, 3, 60).tolist()
    drafter.guess(tokens, 4)
    edited = [*tokens[:31], *RNG.integers(0, 3, 40).tolist()]
    drafter.restart(edited[:-1], None)
    assert drafter.index.tokens == edited[: len(drafter.index)]
    assert len(drafter.index) >= 31
    assert drafter.guess(edited, 9) == lookup().guess(edited, 9)


def test_fates_need_no_verification():
    """Guesses are compared with what was said; unseen are those after the first that was wrong."""

    def told(draft, emitted):
        return [outcomes for _, _, outcomes in draft.outcomes(emitted)]

    guesses = Segment.of_guesses("lookup", (4, 5, 6), (1.0, 2.0, 3.0), 0)
    assert told(Draft(guesses), (4,)) == [(1.0,)]
    assert told(Draft(guesses), (9,)) == [(0.0,)]
    guesses = Segment.of_guesses("lookup", (4, 5, 6), (1.0, 2.0, 3.0), 2)
    assert told(Draft(guesses), (4, 5, 7)) == [(1.0, 1.0, 0.0)]
    first = Segment.of_guesses("lookup", (4,), (1.0,), 1)
    later = Segment.of_guesses("lookup", (5, 6), (1.0, 2.0), 1)
    assert told(Draft(first, later), (4, 5, 7)) == [(1.0,), (1.0, 0.0)]
    assert told(Draft(first, later), (3,)) == [(0.0,), ()]  # what it went on from was wrong
    assert told(Draft(first, later), (4,)) == [(1.0,), ()]  # the answer ended before it


def test_copies_come_from_the_prompt_and_from_the_answer():
    """A text that repeats itself is copied whole; without a repetition nothing is drafted."""
    song = [0, 1, 2, 3, 4, 5] * 6
    world = World(reciting_rows(song, 8, 7), None, Letters(8))
    world.drafter_kind = lambda cache, sampler, tokenizer: LookupDrafter(tokenizer)
    world.draft_rows = world.target_rows
    decoder = world.decoder(stopping_rule=Fixed(12))
    answer = decoder.answer(song[:3], Limits(max_tokens=30))
    assert answer.tokens == song[3:33]
    assert answer.tally.accepted_share > 0.9
    assert answer.tally.rounds <= 5 + 3  # up to the first repetition token by token
    plain = World(random_rows(16, seed=3), random_rows(16), Letters(16))
    plain.drafter_kind = world.drafter_kind
    said = plain.decoder(stopping_rule=Fixed(12)).answer([0, 1, 2], Limits(max_tokens=20))
    assert said.tokens == plain.plain([0, 1, 2], Limits(max_tokens=20))[0]
