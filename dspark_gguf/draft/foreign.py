"""A draft model with another tokenizer: its text becomes the target's tokens.

It reads the conversation's text in its own tokens, and guesses. The text of its guesses becomes
tokens that continue the target's committed ones exactly; a guess that cannot be aligned ends the
draft. The target draws every token itself (`match`), so a wrong alignment costs time, never a word.
(transformers calls this universal assisted generation; Timor et al. 2025, arXiv 2502.05202.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING

from typing_extensions import Self

from dspark_gguf.draft.base import Drafter, Kit, drafter
from dspark_gguf.engine.protocol import Pass, Passes, common_prefix
from dspark_gguf.errors import UsageError
from dspark_gguf.noise import Draws
from dspark_gguf.records import NO_DRAFT, Draft, Segment
from dspark_gguf.sampling import margin
from dspark_gguf.schedule import Plan

#: Tokens before new text that may still change with it: what comes before stays as it is.
_SLACK = 8
#: Put before a piece of text, so that no tokenizer adds a space of its own there.
_BREAK = "\n"


if TYPE_CHECKING:
    from dspark_gguf.draft.answer_grammar import AnswerGrammar
    from dspark_gguf.engine.sequence import SequenceCache
    from dspark_gguf.engine.vocabulary import Vocabulary


class ForeignText:
    """The committed text in a draft's own tokens, kept up to date at little cost."""

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        self._target, self._draft = target, draft
        self._tokens: list[int] = []  # the target's
        self._ends: list[int] = []  # bytes up to the end of each
        self._text = bytearray()
        self._first = draft.tokenize("")
        self.ids = list(self._first)  # the draft's; only the last few change when text is added
        self._id_ends = [0] * len(self.ids)
        self.same = 0  # so many of `ids` are unchanged since this was last set

    @property
    def length(self) -> int:
        """Tokens of the target whose text it has."""
        return len(self._tokens)

    def keep(self, tokens: Sequence[int]) -> None:
        """Forget what is not the beginning of these tokens of the target."""
        self.cut(common_prefix(self._tokens, tokens))

    def cut(self, length: int) -> None:
        """Forget the target's tokens from this place on."""
        if length < self.length:
            del self._tokens[length:], self._ends[length:]
            del self._text[self._ends[-1] if self._ends else 0 :]
            self._read_from(len(self._text))

    def follow(self, tokens: Sequence[int]) -> None:
        """The target's committed tokens, which begin with those that it has, are now these."""
        start = len(self._text)
        for token in tokens[self.length :]:
            self._text += self._target.piece(token, special=True)
            self._tokens.append(token)
            self._ends.append(len(self._text))
        self._read_from(start)

    def _read_from(self, start: int) -> None:
        """The text has changed from this byte on."""
        kept = max(len(self._first), bisect_right(self._id_ends, start) - _SLACK)
        while kept > len(self._first) and not _is_boundary(self._text, self._id_ends[kept - 1]):
            kept -= 1
        at = self._id_ends[kept - 1] if kept > len(self._first) else 0
        before = self.ids[kept:]
        del self.ids[kept:], self._id_ends[kept:]
        for place, text in _stretches(bytes(self._text[at:])):
            ids = continued(self._draft, text, special=True) if at + place else []
            # With spaces of the tokenizer's own it is still better than nothing.
            ids = ids or self._draft.tokenize(text, add_bos=False)
            spelled = [self._draft.piece(token, special=True) for token in ids]
            self.ids += ids
            self._id_ends += [at + place + end for end in _ends(spelled, text.encode())]
        self.same = min(self.same, kept + common_prefix(before, self.ids[kept:]))


def continued(words: Vocabulary, text: str, *, special: bool = False) -> list[int]:
    """Tokens of `text` in the middle of a text; empty if they do not spell it."""
    wanted = text.encode()
    ids = words.tokenize(_BREAK + text, special=special, add_bos=False)
    spelled = [words.piece(token, special=special) for token in ids]
    for count, end in enumerate(accumulate(map(len, spelled)), 1):
        if end >= len(_BREAK):
            if b"".join(spelled[count:]) == wanted:
                return ids[count:]
            if end > len(_BREAK) + 1:
                break
    ids = words.tokenize(text, special=special, add_bos=False)
    return ids if b"".join(words.piece(each, special=special) for each in ids) == wanted else []


def aligned(words: Vocabulary, before: Sequence[int], text: str) -> list[int]:
    """Tokens of `text` after the committed tokens `before`, which stay as they are."""
    tail: list[int] = []
    for token in reversed(before[-_SLACK:]):
        tail.insert(0, token)
        spelled = b"".join(map(words.piece, tail))
        if spelled and _is_boundary(spelled, 0) and words.piece(tail[0]):
            ids = continued(words, spelled.decode("utf-8", "ignore") + text)
            if len(tail) > 2 and ids[: len(tail)] == tail:
                return ids[len(tail) :]
    return continued(words, text)


def _stretches(data: bytes) -> Iterator[tuple[int, str]]:
    """Where text begins, and the text, between bytes that are none, such as half a character."""
    start = 0
    while start < len(data):
        try:
            text, after = data[start:].decode(), len(data)
        except UnicodeDecodeError as error:
            text, after = data[start : start + error.start].decode(), start + error.end
        if text:
            yield start, text
        start = after


def _ends(pieces: Sequence[bytes], text: bytes) -> Iterator[int]:
    """Where each piece of a text ends; a space that the tokenizer put before one is no part."""
    end = 0
    for piece in pieces:
        own = piece if text.startswith(piece, end) else piece.removeprefix(b" ")
        end = min(end + len(own), len(text))
        yield end


def _is_boundary(data: bytes | bytearray, at: int) -> bool:
    """Whether a character begins there."""
    return at >= len(data) or data[at] & 0xC0 != 0x80


@drafter("foreign")
class ForeignDrafter(Drafter):
    """Drafts with a model of another vocabulary."""

    name, about = "foreign", "a draft model with another tokenizer"

    def __init__(self, cache: SequenceCache, target: Vocabulary, draft: Vocabulary) -> None:
        self.cache, self.target, self.draft = cache, target, draft
        self._text = ForeignText(target, draft)
        self._ends = frozenset(draft.end_tokens)
        self._is_new = True

    @classmethod
    def of(cls, kit: Kit) -> Self:
        """From the draft's cache; a UsageError if there is none, or it is of another kind."""
        cache = kit.draft()
        if cache is None or cache.kind != cls.name:
            problem = f"no draft model with another tokenizer for drafter {cls.name}"
            raise UsageError(problem, "Name one with -d, or leave --drafter out.")
        return cls(cache, kit.vocabulary, cache.model.vocabulary)

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """Keep what is still true of the last conversation; the rest is read when drafting."""
        self._text.keep(tokens)
        self._is_new = True

    def trim(self, length: int) -> None:
        """Forget tokens that were not committed."""
        self._text.cut(length)

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """Guess text, and say it in the target's tokens."""
        if plan.length <= 0:
            return NO_DRAFT
        started = perf_counter()
        self._text.follow(tokens)
        ids = self._text.ids
        room = self.cache.n_ctx - len(ids)
        if not ids or room <= 0:
            return NO_DRAFT
        if self._is_new:  # the cache may hold it from the answer before, by another drafter
            self.cache.reuse_prefix(ids[:-1])
        else:
            self.cache.trim(min(self.cache.length, self._text.same, len(ids) - 1))
        self._is_new, self._text.same = False, len(ids)
        unseen = ids[self.cache.length :]
        caught_up, ended = len(unseen), False
        guesses: list[int] = []
        scores, seconds = list[float](), list[float]()
        while len(guesses) < min(plan.length, room):
            rows = yield Pass(self.cache, unseen, 1)
            scores.append(margin(rows[0]))
            token = int(rows[0].argmax())
            admitted = plan.admits(scores[-1])
            seconds.append(perf_counter() - started)
            ended = token in self._ends
            if not admitted or ended or not self.draft.piece(token):
                break
            guesses.append(token)
            if not plan.goes_on():
                break
            started, unseen = perf_counter(), [token]
        return self._said(tokens, plan.length, guesses, scores, seconds, caught_up, ended)

    def _said(
        self,
        tokens: Sequence[int],
        most: int,
        guesses: Sequence[int],
        scores: Sequence[float],
        seconds: Sequence[float],
        caught_up: int,
        ended: bool,
    ) -> Draft:
        """The guesses in the target's tokens, each as sure as the least sure guess in it."""
        spelled = [self.draft.piece(token) for token in guesses]
        text = next((text for place, text in _stretches(b"".join(spelled)) if not place), "")
        said = aligned(self.target, tokens, text) if text else []
        ends = list(accumulate(len(self.target.piece(token)) for token in said))
        if said and not ended and len(guesses) == len(scores):
            said, ends = said[:-1], ends[:-1]  # the last one might go on
        of_guess = list(accumulate(map(len, spelled)))
        own: list[float] = []
        start = 0
        for end in ends:
            first = sum(each <= start for each in of_guess)
            last = sum(each < end for each in of_guess)
            own.append(min(scores[first : last + 1], default=0.0))
            start = end
        if ended and (not guesses or said):
            said, own = [*said, self.target.eot], [*own, scores[-1]]
        said, own = said[:most], own[:most]  # a guess may be several of them
        dists = Segment.of_guesses(self.name, said, own, len(said)).dists
        return Draft(Segment(self.name, tuple(said), dists, tuple(own), tuple(seconds), caught_up))

    def behind(self, tokens: Sequence[int]) -> int:
        """About as many tokens as the target has committed since it read."""
        return max(1, len(tokens) - self._text.length)
