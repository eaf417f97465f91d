"""``/v1/chat/completions``: OpenAI's shape of the pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.bodies import ChatBody
from dspark_gguf.serve.choices import Choice, ChoicesForm
from dspark_gguf.serve.form import Record
from dspark_gguf.serve.pieces import Piece
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.tools import Call
from dspark_gguf.serve.turns import Scored


class ChatForm(ChoicesForm[ChatBody]):
    """Of one request."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, service: Service, body: ChatBody) -> None:
        super().__init__(service, body)
        self._calls = defaultdict[int, list[str]](list)  # ids of those that were begun

    def starts(self, count: int) -> list[Record]:
        """The role of each."""
        return [_choice(k, {"role": "assistant", "content": ""}, None) for k in range(count)]

    def grown(self, piece: Piece) -> Record:
        """A delta."""
        choice = _choice(piece.index, self._delta(piece), piece.finish)
        if self.body.logprobs and piece.scored:
            choice["logprobs"] = _scores(piece.scored, self.vocabulary)
        return choice

    def _delta(self, piece: Piece) -> Record:
        if piece.thought:
            return {"reasoning_content": piece.thought}
        if piece.call is None:
            return {"content": piece.text} if piece.text else {}
        begun = self._calls[piece.index]
        if piece.call.id in begun:
            call: Record = {"function": {"arguments": piece.call.arguments}}
        else:
            begun.append(piece.call.id)
            call = _call(piece.call)
        return {"tool_calls": [{"index": begun.index(piece.call.id), **call}]}

    def choice(self, k: int, choice: Choice) -> Record:
        """A message."""
        message: Record = {"role": "assistant", "content": choice.text}
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if calls := [_call(each) for each in choice.calls.values() if each.done]:
            message["tool_calls"] = calls
        scores = _scores(choice.scored, self.vocabulary) if self.body.logprobs else None
        return {
            "index": k, "message": message, "logprobs": scores, "finish_reason": choice.finish,
        }  # fmt: skip


def _choice(index: int, delta: Record, finish: str | None) -> Record:
    return {"index": index, "delta": delta, "finish_reason": finish}


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
