"""``/v1/messages``: Anthropic's shape of the pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from dspark_gguf.serve.blocks import Block, Step, steps, whole
from dspark_gguf.serve.bodies import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Body,
    Items,
    arguments_of,
    schema_of,
    text_of,
)
from dspark_gguf.serve.errors import RequestError, invalid
from dspark_gguf.serve.form import Form, Record
from dspark_gguf.serve.offered import tool_of
from dspark_gguf.serve.parsing import Message, ParsedRequest
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.turns import timings, usage


class AnthropicMessage(BaseModel):
    """A message."""

    role: str
    content: str | Items[dict[str, Any]]


class MessagesBody(Body):
    """The request; tools of other types than functions are left out."""

    messages: Items[AnthropicMessage] = Field(max_length=MAX_MESSAGES)
    system: str | Items[dict[str, Any]] | None = None
    stop_sequences: Items[str] | None = None
    tools: Items[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    thread: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is."""
        if (self.thread or {}).get("type") == "continue":
            # By this code its client knows that it must send the whole conversation again.
            problem = "nothing is stored here: send the whole conversation"
            raise RequestError(404, problem, "thread_not_found", "thread")
        asked = super().to_request()
        asked.stop = [each for each in self.stop_sequences or () if each] or asked.stop
        system = text_of(self.system, "system")
        asked.messages = [{"role": "system", "content": system}] if system else []
        for k, message in enumerate(self.messages):
            asked.messages += _messages(message, f"messages[{k}]")
        asked.tools = [
            tool_of(each, k, "input_schema")
            for k, each in enumerate(self.tools or ())
            if "input_schema" in each
        ]
        choice = self.tool_choice or {}
        names = {"any": "required", "tool": str(choice.get("name")), "none": "none"}
        asked.tool_choice = names.get(str(choice.get("type")), "auto")
        asked.many_calls = not choice.get("disable_parallel_tool_use")
        asked.schema = schema_of((self.output_config or {}).get("format"), asked.schema)
        kind = (self.thinking or {}).get("type")
        asked.think = {"enabled": True, "adaptive": None, "disabled": False}.get(str(kind))
        return asked


def _messages(message: AnthropicMessage, place: str) -> list[Message]:
    """One for the template, or several: results of tools have a role of their own."""
    if message.role not in ("user", "assistant", "system"):
        raise invalid(f"{place}.role: no such role: {message.role}", "messages")
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    out: list[Message] = []
    texts: list[Record] = []
    more: Record = {}
    for part in message.content:
        kind = part.get("type")
        if kind == "tool_result":
            content = _text(part.get("content"), f"{place}.content")
            result = {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": content}
            out.append(result)
        elif kind == "tool_use":
            function = {"name": str(part.get("name")), "arguments": arguments_of(part.get("input"))}
            call = {"id": part.get("id"), "type": "function", "function": function}
            more.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            more["reasoning_content"] = str(part.get("thinking", ""))
        elif kind != "redacted_thinking":
            texts.append(part)
    if texts or more:
        content = _text(texts, f"{place}.content")
        out.append({"role": message.role, "content": content, **more})
    return out


def _text(content: Any, place: str) -> str:
    """Content as text; so are documents and results of a search that are text."""
    parts = [_document(each, place) for each in content] if isinstance(content, list) else content
    return text_of(parts, place)


def _document(part: Any, place: str) -> Any:
    """A part; if it is a document or the result of a search, its text."""
    match part:
        case {"type": "document", "source": {"type": "text", "data": given}}:
            text = text_of(given, f"{place}.source.data")
        case {"type": "document", "source": {"type": "content", "content": given}}:
            text = text_of(given, f"{place}.source.content")
        case {"type": "search_result", "content": given}:
            text = text_of(given, f"{place}.content")
        case _:
            return part
    return {"type": "text", "text": f"{part['title']}\n{text}" if part.get("title") else text}


class MessagesForm(Form[MessagesBody]):
    """Of one request."""

    kind, prefix = "message", "msg"

    def broken(self, error: RequestError) -> list[str]:
        """An error in Anthropic's shape."""
        return [event(error.as_anthropic(), "error")]

    async def whole(self, answers: Answers) -> Record:
        """The whole message."""
        blocks, finish = await whole(answers.pieces())
        message = self._message(answers) | self._stopped(answers, finish)
        content = [_content(each, each.text) for each in blocks]
        return {**message, "content": content, "timings": timings(answers.turns)}

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The events of a stream."""
        start = self._message(answers)
        start["usage"]["input_tokens"] = len(answers.turns[0].prompt)
        yield _event("message_start", message=start)
        async for step in steps(answers.pieces()):
            if step.what == "ends":
                ended = self._stopped(answers, step.finish)
                numbers = {"usage": _usage(answers), "timings": timings(answers.turns)}
                yield _event("message_delta", delta=ended, **numbers)
            else:
                yield _of_block(step)
        yield _event("message_stop")

    def _message(self, answers: Answers) -> Record:
        return {
            "id": self.head["id"], "type": "message", "role": "assistant",
            "model": self.head["model"], "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": _usage(answers),
        }  # fmt: skip

    def _stopped(self, answers: Answers, finish: str) -> Record:
        """Why it ended, in Anthropic's words."""
        turn = answers.turns[0]
        names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        if finish == "stop" and turn.limits.stop:
            said = self.vocabulary.detokenize(turn.answer.tokens)
            places = {said.find(stop): stop for stop in turn.limits.stop if stop in said}
            if places:
                return {"stop_reason": "stop_sequence", "stop_sequence": places[min(places)]}
        return {"stop_reason": names[finish], "stop_sequence": None}


def _usage(answers: Answers) -> Record:
    count = usage(answers.turns)
    cached = count["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": count["prompt_tokens"] - cached,
        "output_tokens": count["completion_tokens"],
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def _content(block: Block, text: str = "") -> Record:
    if block.call is not None:
        call = {"type": "tool_use", "id": block.call.id, "name": block.call.name}
        return {**call, "input": json.loads(text or "{}")}
    if block.kind == "thought":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text}


def _of_block(step: Step) -> str:
    index = step.block.number
    if step.what == "opens":
        return _event("content_block_start", index=index, content_block=_content(step.block))
    if step.what == "closes":
        return _event("content_block_stop", index=index)
    names = {
        "text": ("text_delta", "text"),
        "thought": ("thinking_delta", "thinking"),
        "call": ("input_json_delta", "partial_json"),
    }
    kind, name = names[step.block.kind]
    return _event("content_block_delta", index=index, delta={"type": kind, name: step.text})


def _event(name: str, /, **values: Any) -> str:
    return event({"type": name, **values}, name)
