"""``/v1/messages``: Anthropic's Messages API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from dspark_gguf.serve.blocks import Block, BlockEvent, block_events, collect_blocks
from dspark_gguf.serve.bodies import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Body,
    Items,
    call_arguments,
    format_schema,
    text_content,
)
from dspark_gguf.serve.deltas import Answers
from dspark_gguf.serve.errors import RequestError, invalid
from dspark_gguf.serve.formatter import Formatter, Record
from dspark_gguf.serve.parsing import Message, ParsedRequest
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.tool_params import parse_tool
from dspark_gguf.serve.turns import timings, usage


class AnthropicMessage(BaseModel):
    """A message of the conversation."""

    role: str
    content: str | Items[dict[str, Any]]


class MessagesBody(Body):
    """The request; tools that Anthropic's server would run are ignored."""

    messages: Items[AnthropicMessage] = Field(max_length=MAX_MESSAGES)
    system: str | Items[dict[str, Any]] | None = None
    stop_sequences: Items[str] | None = None
    tools: Items[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    thread: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body."""
        if (self.thread or {}).get("type") == "continue":
            # This code tells Anthropic's client to send the whole conversation again.
            problem = "conversations are not stored here: send the whole conversation"
            raise RequestError(404, problem, "thread_not_found", "thread")
        request = super().to_request()
        request.stop = [each for each in self.stop_sequences or () if each] or request.stop
        system = text_content(self.system, "system")
        request.messages = [{"role": "system", "content": system}] if system else []
        for k, message in enumerate(self.messages):
            request.messages += _messages(message, f"messages[{k}]")
        request.tools = [
            parse_tool(each, k, "input_schema")
            for k, each in enumerate(self.tools or ())
            if "input_schema" in each
        ]
        choice = self.tool_choice or {}
        names = {"any": "required", "tool": str(choice.get("name")), "none": "none"}
        request.tool_choice = names.get(str(choice.get("type")), "auto")
        request.parallel_calls = not choice.get("disable_parallel_tool_use")
        request.schema = format_schema((self.output_config or {}).get("format"), request.schema)
        kind = (self.thinking or {}).get("type")
        request.think = {"enabled": True, "adaptive": None, "disabled": False}.get(str(kind))
        return request


def _messages(message: AnthropicMessage, path: str) -> list[Message]:
    """The messages for the template; each tool result becomes a message with the role tool."""
    if message.role not in ("user", "assistant", "system"):
        raise invalid(f"{path}.role: unknown role {message.role}", "messages")
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    out: list[Message] = []
    texts: list[Record] = []
    extra: Record = {}
    for part in message.content:
        kind = part.get("type")
        if kind == "tool_result":
            content = _text(part.get("content"), f"{path}.content")
            result = {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": content}
            out.append(result)
        elif kind == "tool_use":
            arguments = call_arguments(part.get("input"))
            function = {"name": str(part.get("name")), "arguments": arguments}
            call = {"id": part.get("id"), "type": "function", "function": function}
            extra.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            extra["reasoning_content"] = str(part.get("thinking", ""))
        elif kind != "redacted_thinking":
            texts.append(part)
    if texts or extra:
        content = _text(texts, f"{path}.content")
        out.append({"role": message.role, "content": content, **extra})
    return out


def _text(content: Any, path: str) -> str:
    """The text of content, including that of documents and search results."""
    if isinstance(content, list):
        content = [_as_text_part(part, path) for part in content]
    return text_content(content, path)


def _as_text_part(part: Any, path: str) -> Any:
    """A text part for a document or search result that is text; any other part as it is."""
    match part:
        case {"type": "document", "source": {"type": "text", "data": data}}:
            text = text_content(data, f"{path}.source.data")
        case {"type": "document", "source": {"type": "content", "content": content}}:
            text = text_content(content, f"{path}.source.content")
        case {"type": "search_result", "content": content}:
            text = text_content(content, f"{path}.content")
        case _:
            return part
    return {"type": "text", "text": f"{part['title']}\n{text}" if part.get("title") else text}


class MessagesFormatter(Formatter[MessagesBody]):
    """Writes a message, or its events."""

    kind, prefix = "message", "msg"

    def error_events(self, error: RequestError) -> list[str]:
        """An error in Anthropic's format."""
        return [event(error.as_anthropic(), "error")]

    async def full_response(self, answers: Answers) -> Record:
        """The whole message."""
        blocks, finish = await collect_blocks(answers.deltas())
        message = self._message(answers) | self._stop_reason(answers, finish)
        content = [_content(block, block.text) for block in blocks]
        return {**message, "content": content, "timings": timings(answers.turns)}

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The events of a streamed message."""
        start = self._message(answers)
        start["usage"]["input_tokens"] = len(answers.turns[0].prompt)
        yield _event("message_start", message=start)
        async for each in block_events(answers.deltas()):
            if each.type == "end":
                reason = self._stop_reason(answers, each.finish)
                numbers = {"usage": _usage(answers), "timings": timings(answers.turns)}
                yield _event("message_delta", delta=reason, **numbers)
            else:
                yield _block_event(each)
        yield _event("message_stop")

    def _message(self, answers: Answers) -> Record:
        return {
            "id": self.head["id"], "type": "message", "role": "assistant",
            "model": self.head["model"], "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": _usage(answers),
        }  # fmt: skip

    def _stop_reason(self, answers: Answers, finish: str) -> Record:
        """Why the message ended, as Anthropic names it, and the stop sequence if there was one."""
        turn = answers.turns[0]
        names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        if finish == "stop" and turn.limits.stop:
            text = self.vocabulary.detokenize(turn.answer.tokens)
            found = {text.find(stop): stop for stop in turn.limits.stop if stop in text}
            if found:
                return {"stop_reason": "stop_sequence", "stop_sequence": found[min(found)]}
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


def _block_event(given: BlockEvent) -> str:
    index = given.block.index
    if given.type == "start":
        return _event("content_block_start", index=index, content_block=_content(given.block))
    if given.type == "stop":
        return _event("content_block_stop", index=index)
    names = {
        "text": ("text_delta", "text"),
        "thought": ("thinking_delta", "thinking"),
        "call": ("input_json_delta", "partial_json"),
    }
    kind, name = names[given.block.kind]
    return _event("content_block_delta", index=index, delta={"type": kind, name: given.text})


def _event(name: str, /, **values: Any) -> str:
    return event({"type": name, **values}, name)
