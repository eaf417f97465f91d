"""Where the last tokens stood before, in a list of tokens that grows and shrinks.

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
#: Places looked at: the latest ones.
PLACES = 8


class Index:
    """Where short runs of tokens stood in a growing list of tokens.

    Each token has an entry of each length in `RUNS`: memory is bounded by the tokens held. After an
    exception inside a change (Ctrl-C) it holds nothing, and is to be filled again.
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
        """Earlier places where the last tokens stood, the longest match first, then the latest.

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
    tokens: Sequence[int], matches: Sequence[Match]
) -> tuple[int, float, Sequence[Match]]:
    """The likeliest next token, its raw score, and the matches that go on with it.

    Each match votes with its length for the token that followed it; ties go to the first. The score
    rises with the longest match and with the number of matches, and falls with the votes for other
    tokens: of ten figures tried, these three rank survivors (docs/log.md).

    Args:
        tokens: where the matches lie.
        matches: at least one, in order; none of them at the end of `tokens`.

    """
    votes: dict[int, int] = {}
    for match in matches:
        token = tokens[match.place]
        votes[token] = votes.get(token, 0) + match.length
    best = max(votes, key=votes.__getitem__)
    agreeing = [match for match in matches if tokens[match.place] == best]
    against = 1.0 - votes[best] / sum(votes.values())
    score = _LENGTH * math.log2(agreeing[0].length) + _COUNT * math.log2(len(matches))
    score -= _AGAINST * against
    longer = [Match(match.place + 1, match.length + 1) for match in agreeing]
    return best, score, [match for match in longer if match.place < len(tokens)]


def chain(
    tokens: Sequence[int], matches: Sequence[Match], most: int
) -> tuple[list[int], list[float]]:
    """Guesses and their raw scores, as long as something matches."""
    guesses: list[int] = []
    scores: list[float] = []
    while len(matches) > 1 and len(guesses) < most:
        token, score, matches = likeliest(tokens, matches)
        guesses.append(token)
        scores.append(score)
    for match in matches[:1]:  # the last one: all that followed it, at once
        followed = tokens[match.place : match.place + most - len(guesses)]
        guesses += followed
        scores += [_LENGTH * math.log2(match.length + k) for k in range(len(followed))]
    return guesses, scores
