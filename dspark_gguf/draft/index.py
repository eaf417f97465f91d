"""Find earlier occurrences of the last tokens, in a list of tokens that grows and shrinks.

The places come from hashes of the last 8, 4 and 2 tokens, the longest match from comparing
backwards. Why not a suffix automaton: docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Tokens that must match, and how far back more of them are counted.
LEAST, FURTHEST = 2, 32
#: Lengths of the runs of tokens that are indexed, the longest first.
RUNS = (8, 4, 2)
#: Weights of the raw score: see `likeliest`.
_LENGTH, _COUNT, _AGAINST = 1.2, 0.8, 6.0
#: How many of the latest places are considered.
PLACES = 8


class Index:
    """The places of short runs of tokens in a growing list of tokens.

    Each token has one entry per length in `RUNS`, so the tokens bound the memory. If an exception
    (Ctrl-C) strikes during a change, the index is empty afterwards and must be filled again.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._changing = False

    @property
    def tokens(self) -> list[int]:
        """What is indexed, in order."""
        if self._changing:
            self._tokens, self._places = [], {}
            self._changing = False
        return self._tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        known, places = self.tokens, self._places
        self._changing = True
        for token in tokens:
            known.append(token)
            end = len(known)
            for run in RUNS:
                if end >= run:
                    places.setdefault(tuple(known[end - run :]), []).append(end)
        self._changing = False

    def trim(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        known, all_places = self.tokens, self._places
        self._changing = True
        for end in range(len(known), length, -1):
            for run in RUNS:
                if end >= run:
                    key = tuple(known[end - run :])
                    places = all_places[key]
                    places.pop()
                    if not places:
                        del all_places[key]
            known.pop()
        self._changing = False

    def matches(self) -> list[Match]:
        """Earlier places of the last tokens, the longest match first, then the latest.

        The latest places after the longest of the `RUNS` that stood before.
        """
        known = self.tokens
        end = len(known)
        places: list[int] = []
        for run in RUNS:
            if end >= run and not places:
                # The last place of all is the end itself.
                places = self._places[tuple(known[end - run :])][-PLACES - 1 : -1]
        found = [Match(place, common(known, place, known, end)) for place in places]
        return sorted(found, key=lambda match: (match.length, match.place), reverse=True)


def common(tokens: Sequence[int], place: int, known: Sequence[int], end: int) -> int:
    """How many tokens before `place` in `tokens` are those before `end` in `known`.

    The caller knows that two are; no more than `FURTHEST` are counted.
    """
    most = min(FURTHEST, place, end)
    length = LEAST
    while length < most and tokens[place - 1 - length] == known[end - 1 - length]:
        length += 1
    return length


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier place."""

    place: int  # of the token that followed there
    length: int  # tokens before it that are those before the next token now


def likeliest(
    tokens: Sequence[int], matches: Sequence[Match], ahead: int
) -> tuple[int, float, Sequence[Match]]:
    """The likeliest token after `ahead` guesses, its raw score, and the matches that have it.

    Each match votes with its length for the token that followed it; ties go to the first. The score
    rises with the longest match and with the number of matches, and falls with the votes for other
    tokens: of ten figures tried, these three rank survivors (docs/log.md).

    `matches`, at least one, lie in `tokens` in order; all of them contain the guesses so far.
    """
    votes, count = dict[int, int](), len(matches)
    for match in matches:
        token = tokens[match.place + ahead]
        votes[token] = votes.get(token, 0) + match.length + ahead
    best, against = token, 0.0
    if len(votes) > 1:
        best = max(votes, key=votes.__getitem__)
        matches = [match for match in matches if tokens[match.place + ahead] == best]
        against = 1.0 - votes[best] / sum(votes.values())
    score = _LENGTH * math.log2(matches[0].length + ahead) + _COUNT * math.log2(count)
    return best, score - _AGAINST * against, matches


def chain(
    tokens: Sequence[int], matches: Sequence[Match], most: int
) -> tuple[list[int], list[float]]:
    """Guesses and their raw scores, as long as something matches."""
    guesses: list[int] = []
    scores: list[float] = []
    while len(matches) > 1 and len(guesses) < most:
        token, score, matches = likeliest(tokens, matches, len(guesses))
        guesses.append(token)
        scores.append(score)
        # The latest place is the first to come to the end.
        if max(match.place for match in matches) + len(guesses) >= len(tokens):
            matches = [match for match in matches if match.place + len(guesses) < len(tokens)]
    for match in matches[:1]:  # the last one: all that followed it, at once
        ahead = len(guesses)
        followed = tokens[match.place + ahead : match.place + most]
        guesses += followed
        scores += [_LENGTH * math.log2(match.length + ahead + k) for k in range(len(followed))]
    return guesses, scores
