"""``/v1/completions``: text that goes on, as editors ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.asked import MOST_CHOICES, Asked
from dspark_gguf.serve.bodies import CompletionBody
from dspark_gguf.serve.chat import Choice, with_numbers
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.refusals import invalid
from dspark_gguf.serve.service import prompts_of
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.turns import Scored

Record = dict[str, Any]


def asked_of(body: CompletionBody, vocabulary: Vocabulary) -> list[Asked]:
    """A request for each of its prompts."""
    prompts, asked = prompts_of(body.prompt), body.asked()
    asked.n = 1 if body.n is None else body.n
    if body.logprobs is not None and body.logprobs is not False:
        asked.top = int(body.logprobs)
    if asked.top is not None and body.echo:
        raise invalid("there are no log-probabilities of the prompt (echo)", "echo")
    if not 1 <= len(prompts) * max(1, asked.n) <= MOST_CHOICES:
        raise invalid(f"from 1 to {MOST_CHOICES} answers at once", "prompt")
    asked.grammar, asked.schema = body.grammar, body.json_schema
    if body.suffix is not None:
        prompts = [_filled(each, body.suffix, vocabulary) for each in prompts]
    return [replace(asked, prompt=each) for each in prompts]


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


def echoes(body: CompletionBody, vocabulary: Vocabulary) -> list[str]:
    """What stands before each answer."""
    prompts, n = prompts_of(body.prompt), body.n or 1
    if not body.echo:
        return [""] * (n * len(prompts))
    texts = [each if isinstance(each, str) else vocabulary.detokenize(each) for each in prompts]
    return [text for text in texts for _ in range(n)]


async def completion_events(
    answers: Answers, head: Record, before: Sequence[str], vocabulary: Vocabulary, asks_usage: bool
) -> AsyncIterator[str]:
    """The chunks of a stream."""
    count, ended = len(answers.turns), 0
    places = [len(text) for text in before]
    for index, text in enumerate(before):
        if text:
            yield _chunk(head, index, text, None, None)
    async for piece in answers.pieces():
        ended += piece.finish is not None
        scores = _scores(piece.scored, vocabulary, places[piece.index]) if piece.scored else None
        places[piece.index] += len(piece.text)
        own = with_numbers(head, answers) if ended == count and not asks_usage else head
        yield _chunk(own, piece.index, piece.text, piece.finish, scores)
    if asks_usage:
        yield event({**with_numbers(head, answers), "choices": []})
    yield event("[DONE]")


async def completion_answer(
    answers: Answers, head: Record, before: Sequence[str], vocabulary: Vocabulary
) -> Record:
    """The whole answer at once."""
    choices = [Choice() for _ in answers.turns]
    async for piece in answers.pieces():
        choices[piece.index].add(piece)
    found = [
        {
            "index": k,
            "text": before[k] + choice.text,
            "logprobs": _scores(choice.scored, vocabulary, len(before[k]))
            if choice.scored
            else None,
            "finish_reason": choice.finish,
        }
        for k, choice in enumerate(choices)
    ]
    return {**with_numbers(head, answers), "choices": found}


def _chunk(head: Record, index: int, text: str, finish: str | None, scores: Record | None) -> str:
    choice = {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}
    return event({**head, "choices": [choice]})


def _scores(scored: Sequence[Scored], vocabulary: Vocabulary, place: int) -> Record:
    """OpenAI's older shape, in lists."""
    ends = vocabulary.end_tokens
    out: Record = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for each in scored:
        if each.token in ends:
            continue
        text = vocabulary.detokenize([each.token], special=True)
        best = {vocabulary.detokenize([t], special=True): value for t, value in each.best}
        out["tokens"].append(text)
        out["token_logprobs"].append(each.logprob)
        out["top_logprobs"].append(best)
        out["text_offset"].append(place)
        place += len(text)
    return out
