"""``/v1/chat/completions``: OpenAI's shape of the pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.pieces import Answers, Piece
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.tools import Call
from dspark_gguf.serve.turns import Scored
from dspark_gguf.serve.usage import timings, usage

Record = dict[str, Any]


def with_numbers(head: Record, answers: Answers) -> Record:
    """`head` with what the answers took."""
    return {**head, "usage": usage(answers.turns), "timings": timings(answers.turns)}


async def chat_events(
    answers: Answers, head: Record, vocabulary: Vocabulary, asks_usage: bool, with_scores: bool
) -> AsyncIterator[str]:
    """The chunks of a stream; the numbers come with the last one, or after it if asked for."""
    count = len(answers.turns)
    calls, ended = [0] * count, 0
    for index in range(count):
        yield _chunk(head, index, {"role": "assistant", "content": ""})
    async for piece in answers.pieces():
        ended += piece.finish is not None
        scores = _scores(piece.scored, vocabulary) if with_scores and piece.scored else None
        head_ = head
        if ended == count and not asks_usage:
            head_ = with_numbers(head, answers)
        yield _chunk(head_, piece.index, _delta(piece, calls), piece.finish, scores)
    if asks_usage:
        yield event({**with_numbers(head, answers), "choices": []})
    yield event("[DONE]")


def _delta(piece: Piece, calls: list[int]) -> Record:
    if piece.call is not None:
        place = calls[piece.index]
        calls[piece.index] += 1
        return {"tool_calls": [{"index": place, **_call(piece.call)}]}
    if piece.thought:
        return {"reasoning_content": piece.thought}
    return {"content": piece.text} if piece.text else {}


def _chunk(
    head: Record,
    index: int,
    delta: Record,
    finish: str | None = None,
    scores: Record | None = None,
) -> str:
    choice: Record = {"index": index, "delta": delta, "finish_reason": finish}
    if scores is not None:
        choice["logprobs"] = scores
    return event({**head, "choices": [choice]})


async def chat_answer(
    answers: Answers, head: Record, vocabulary: Vocabulary, with_scores: bool
) -> Record:
    """The whole answer at once, from the same pieces."""
    choices = [Choice() for _ in answers.turns]
    async for piece in answers.pieces():
        choices[piece.index].add(piece)
    return {
        **with_numbers(head, answers),
        "choices": [
            {
                "index": k,
                "message": choice.message(),
                "logprobs": _scores(choice.scored, vocabulary) if with_scores else None,
                "finish_reason": choice.finish,
            }
            for k, choice in enumerate(choices)
        ],
    }


class Choice:
    """The pieces of one answer, put together."""

    def __init__(self) -> None:
        self.text = self.thought = ""
        self.calls: list[Call] = []
        self.scored: list[Scored] = []
        self.finish = "stop"

    def add(self, piece: Piece) -> None:
        """Append one."""
        self.text += piece.text
        self.thought += piece.thought
        self.calls += [piece.call] if piece.call else []
        self.scored += piece.scored
        self.finish = piece.finish or self.finish

    def message(self) -> Record:
        """In OpenAI's shape."""
        message: Record = {"role": "assistant", "content": self.text}
        if self.thought:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["tool_calls"] = [_call(each) for each in self.calls]
        return message


def _call(call: Call) -> Record:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _scores(scored: Sequence[Scored], vocabulary: Vocabulary) -> Record:
    ends = vocabulary.end_tokens
    scores = [
        {
            **_token(vocabulary, each.token, each.logprob),
            "top_logprobs": [_token(vocabulary, token, value) for token, value in each.best],
        }
        for each in scored
        if each.token not in ends
    ]
    return {"content": scores}


def _token(vocabulary: Vocabulary, token: int, logprob: float) -> Record:
    data = vocabulary.piece(token, special=True)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(logprob, -9999.0),
        "bytes": list(data),
    }
