"""``/v1/completions``: text that goes on, as editors ask for it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.bodies import CompletionBody
from dspark_gguf.serve.choices import Choice, ChoicesForm
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.form import Record
from dspark_gguf.serve.parsing import MAX_CHOICES, ParsedRequest, require_ids
from dspark_gguf.serve.pieces import Piece
from dspark_gguf.serve.turns import Scored


class CompletionForm(ChoicesForm[CompletionBody]):
    """Of one request."""

    kind = chunk = "text_completion"
    prefix = "cmpl"

    def requests(self) -> list[ParsedRequest]:
        """A request for each of its prompts."""
        body, prompts, [asked] = self.body, self.body.prompts(), super().requests()
        if body.prompt is None and self.vocabulary.bos >= 0:
            prompts = [[self.vocabulary.bos]]  # the beginning of a text
        if asked.top is not None and body.echo:
            raise invalid("there are no log-probabilities of the prompt (echo)", "echo")
        if not 1 <= len(prompts) * max(1, asked.n) <= MAX_CHOICES:
            raise invalid(f"from 1 to {MAX_CHOICES} answers at once", "prompt")
        #: What stands before each answer, and where its next token begins.
        self._before = [
            "" if not body.echo else each if isinstance(each, str) else self._text(each)
            for each in prompts
            for _ in range(asked.n)
        ]
        self._places = [_Place(len(text)) for text in self._before]
        if body.suffix:
            prompts = [_filled(each, body.suffix, self.vocabulary) for each in prompts]
        return [replace(asked, prompt=each) for each in prompts]

    def _text(self, ids: list[int]) -> str:
        return self.vocabulary.detokenize(require_ids(ids, self.vocabulary, "prompt"))

    def starts(self, count: int) -> list[Record]:
        """What stands before each."""
        return [_choice(k, text) for k, text in enumerate(self._before) if text]

    def grown(self, piece: Piece) -> Record:
        """A piece of text."""
        scores = self._scores(piece.scored, self._places[piece.index])
        return _choice(piece.index, piece.text, piece.finish, scores)

    def choice(self, k: int, choice: Choice) -> Record:
        """All of the text."""
        scores = self._scores(choice.scored, self._places[k])
        return _choice(k, self._before[k] + choice.text, choice.finish, scores)

    def _scores(self, scored: Sequence[Scored], place: _Place) -> Record | None:
        """OpenAI's older shape, in lists."""
        if not scored:
            return None
        out: Record = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in scored:
            if each.token in self.vocabulary.end_tokens:
                continue
            out["tokens"].append(self._piece(each.token))
            out["token_logprobs"].append(max(each.logprob, -9999.0))
            out["top_logprobs"].append({self._piece(t): max(v, -9999.0) for t, v in each.best})
            out["text_offset"].append(place.pass_by(self.vocabulary.piece(each.token)))
        return out

    def _piece(self, token: int) -> str:
        return self.vocabulary.detokenize([token], special=True)


class _Place:
    """Where the next token begins in a text, in characters."""

    def __init__(self, start: int) -> None:
        self._at, self._bytes = start, codecs.getincrementaldecoder("utf-8")("replace")

    def pass_by(self, token: bytes) -> int:
        """Where it begins; of a token within a character, where that does."""
        place = self._at
        self._at += len(self._bytes.decode(token))
        return place


def _filled(prompt: str | list[int], suffix: str, vocabulary: Vocabulary) -> list[int]:
    """The prompt that asks for what comes between: prefix, suffix, middle."""
    marks = vocabulary.fill_in
    if marks is None:
        raise invalid("this model cannot fill in text before a suffix", "suffix")

    def ids(text: str) -> list[int]:
        return vocabulary.tokenize(text, special=False, add_bos=False)

    before = ids(prompt) if isinstance(prompt, str) else prompt
    first = [vocabulary.bos] if vocabulary.adds_bos else []
    return [*first, marks[0], *before, marks[1], *ids(suffix), marks[2]]


def _choice(
    index: int, text: str, finish: str | None = None, scores: Record | None = None
) -> Record:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}
