"""``/v1/chat/completions``: OpenAI's chat completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.bodies import ChatBody
from dspark_gguf.serve.choices import Choice, ChoicesFormatter
from dspark_gguf.serve.deltas import Delta
from dspark_gguf.serve.formatter import Record
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.tools import ToolCall
from dspark_gguf.serve.turns import TokenLogprob


class ChatFormatter(ChoicesFormatter[ChatBody]):
    """Writes a chat completion, or its chunks."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, service: Service, body: ChatBody) -> None:
        super().__init__(service, body)
        #: For each choice, the ids of the calls that were sent, in order.
        self._call_ids = defaultdict[int, list[str]](list)

    def first_choices(self, count: int) -> list[Record]:
        """The role of each message."""
        return [_choice(k, {"role": "assistant", "content": ""}, None) for k in range(count)]

    def chunk_choice(self, delta: Delta) -> Record:
        """A choice with a delta."""
        choice = _choice(delta.index, self._delta(delta), delta.finish)
        if self.body.logprobs and delta.logprobs:
            choice["logprobs"] = _logprobs(delta.logprobs, self.vocabulary)
        return choice

    def _delta(self, delta: Delta) -> Record:
        if delta.thought:
            return {"reasoning_content": delta.thought}
        if delta.call is None:
            return {"content": delta.text} if delta.text else {}
        ids = self._call_ids[delta.index]
        if delta.call.id in ids:
            call: Record = {"function": {"arguments": delta.call.arguments}}
        else:
            ids.append(delta.call.id)
            call = _call(delta.call)
        return {"tool_calls": [{"index": ids.index(delta.call.id), **call}]}

    def full_choice(self, k: int, choice: Choice) -> Record:
        """A choice with its message."""
        message: Record = {"role": "assistant", "content": choice.text}
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if calls := [_call(each) for each in choice.calls.values() if each.done]:
            message["tool_calls"] = calls
        logprobs = _logprobs(choice.logprobs, self.vocabulary) if self.body.logprobs else None
        return {
            "index": k, "message": message, "logprobs": logprobs, "finish_reason": choice.finish,
        }  # fmt: skip


def _choice(index: int, delta: Record, finish: str | None) -> Record:
    return {"index": index, "delta": delta, "finish_reason": finish}


def _call(call: ToolCall) -> Record:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _logprobs(logprobs: Sequence[TokenLogprob], vocabulary: Vocabulary) -> Record:
    content = [
        {
            **_logprob(vocabulary, each.token, each.logprob),
            "top_logprobs": [_logprob(vocabulary, token, value) for token, value in each.top],
        }
        for each in logprobs
        if each.token not in vocabulary.end_tokens
    ]
    return {"content": content}


def _logprob(vocabulary: Vocabulary, token: int, logprob: float) -> Record:
    data = vocabulary.piece(token, special=True)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}
