"""``/v1/completions``: continue a text, or fill in the text before a suffix."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.bodies import CompletionBody
from dspark_gguf.serve.choices import Choice, ChoicesFormatter
from dspark_gguf.serve.deltas import Delta
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.formatter import Record
from dspark_gguf.serve.parsing import MAX_CHOICES, ParsedRequest, require_ids
from dspark_gguf.serve.turns import TokenLogprob


class CompletionFormatter(ChoicesFormatter[CompletionBody]):
    """Writes a completion, or its chunks."""

    kind = chunk = "text_completion"
    prefix = "cmpl"

    def requests(self) -> list[ParsedRequest]:
        """One request for each prompt."""
        body, prompts, [request] = self.body, self.body.prompts(), super().requests()
        if body.prompt is None and self.vocabulary.bos >= 0:
            prompts = [[self.vocabulary.bos]]
        if request.top_logprobs is not None and body.echo:
            raise invalid("echo cannot be combined with logprobs: the prompt has none", "echo")
        if not 1 <= len(prompts) * max(1, request.n) <= MAX_CHOICES:
            raise invalid(f"answers (prompts times n) must be from 1 to {MAX_CHOICES}", "prompt")
        #: The text that each answer repeats from its prompt, and where its next token starts.
        self._echoes = [
            "" if not body.echo else each if isinstance(each, str) else self._text(each)
            for each in prompts
            for _ in range(request.n)
        ]
        self._offsets = [_TextOffset(len(text)) for text in self._echoes]
        if body.suffix:
            prompts = [_fill_in_prompt(each, body.suffix, self.vocabulary) for each in prompts]
        return [replace(request, prompt=each) for each in prompts]

    def _text(self, ids: list[int]) -> str:
        return self.vocabulary.detokenize(require_ids(ids, self.vocabulary, "prompt"))

    def first_choices(self, count: int) -> list[Record]:
        """The echo of each prompt."""
        return [_choice(k, text) for k, text in enumerate(self._echoes) if text]

    def chunk_choice(self, delta: Delta) -> Record:
        """A choice with a part of the text."""
        logprobs = self._logprobs(delta.logprobs, self._offsets[delta.index])
        return _choice(delta.index, delta.text, delta.finish, logprobs)

    def full_choice(self, k: int, choice: Choice) -> Record:
        """A choice with all of the text."""
        logprobs = self._logprobs(choice.logprobs, self._offsets[k])
        return _choice(k, self._echoes[k] + choice.text, choice.finish, logprobs)

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: _TextOffset) -> Record | None:
        if not logprobs:
            return None
        out: Record = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in logprobs:
            if each.token in self.vocabulary.end_tokens:
                continue
            out["tokens"].append(self._token(each.token))
            out["token_logprobs"].append(each.logprob)
            out["top_logprobs"].append({self._token(t): value for t, value in each.top})
            out["text_offset"].append(offset.advance(self.vocabulary.piece(each.token)))
        return out

    def _token(self, token: int) -> str:
        return self.vocabulary.detokenize([token], special=True)


class _TextOffset:
    """Where the next token starts in a text, in characters."""

    def __init__(self, start: int) -> None:
        self._offset, self._decoder = start, codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, token: bytes) -> int:
        """The offset of this token, or of the character that it continues."""
        offset = self._offset
        self._offset += len(self._decoder.decode(token))
        return offset


def _fill_in_prompt(prompt: str | list[int], suffix: str, vocabulary: Vocabulary) -> list[int]:
    """The prompt for the text in between, in the order prefix, suffix, middle."""
    tokens = vocabulary.fill_in
    if tokens is None:
        raise invalid("this model does not support suffix (fill in the middle)", "suffix")

    def ids(text: str) -> list[int]:
        return vocabulary.tokenize(text, special=False, add_bos=False)

    before = ids(prompt) if isinstance(prompt, str) else prompt
    first = [vocabulary.bos] if vocabulary.adds_bos else []
    return [*first, tokens[0], *before, tokens[1], *ids(suffix), tokens[2]]


def _choice(
    index: int, text: str, finish: str | None = None, logprobs: Record | None = None
) -> Record:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
