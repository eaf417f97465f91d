"""``/v1/responses``: OpenAI's Responses API. Nothing is stored between requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from dspark_gguf.serve.blocks import Block, BlockEvent, block_events, collect_blocks
from dspark_gguf.serve.bodies import (
    ChatMessage,
    Items,
    ToolBody,
    format_schema,
    text_content,
    thinking_of_effort,
    token_limit,
)
from dspark_gguf.serve.deltas import Answers
from dspark_gguf.serve.errors import RequestError, invalid
from dspark_gguf.serve.formatter import Formatter, Record
from dspark_gguf.serve.parsing import Message, ParsedRequest
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.tool_params import parse_tool
from dspark_gguf.serve.turns import timings, usage


class ResponsesBody(ToolBody):
    """The request. Tools and items of unknown types are ignored."""

    input: str | Items[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    metadata: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body."""
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name):
                raise _not_stored(name)
        request = super().to_request()
        if self.max_output_tokens is not None:
            request.max_tokens = token_limit(self.max_output_tokens)
        request.messages = _messages(self.input)
        if self.instructions:
            request.messages.insert(0, {"role": "system", "content": self.instructions})
        request.schema = format_schema((self.text or {}).get("format"), request.schema)
        request.think = thinking_of_effort((self.reasoning or {}).get("effort"))
        return request

    def tool(self, tool: Record, k: int) -> Record | None:
        """A function; None for other tools."""
        return parse_tool(tool, k) if tool.get("type") == "function" else None


def _messages(items: str | list[Record]) -> list[Message]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    out: list[Message] = []
    thought = ""  # belongs to the assistant's next message or call
    for k, item in enumerate(items):
        path, kind = f"input[{k}]", item.get("type") or "message"
        if kind == "reasoning":
            thought = _thought(item)
        elif kind == "message":
            role, content = item.get("role"), item.get("content")
            if not isinstance(role, str) or not isinstance(content, str | list):
                raise invalid(f"{path} needs a role and content", "input")
            if isinstance(content, list) and not all(isinstance(each, dict) for each in content):
                raise invalid(f"{path}.content must be a list of parts", "input")
            out.append(ChatMessage(role=role, content=content).for_template(path))
        elif kind == "item_reference":
            raise _not_stored("input")
        elif kind == "function_call":
            out.append(_call_message(item, path))
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            if isinstance(output, list) and all(isinstance(each, dict) for each in output):
                text = text_content(output, f"{path}.output")
            out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        if thought and kind in ("message", "function_call"):
            if out[-1]["role"] == "assistant":
                out[-1]["reasoning_content"] = thought
            thought = ""
    return _merge_calls(out)


def _thought(item: Record) -> str:
    """The text of a reasoning item, or if there is none, its summary."""
    given = item.get("content") or item.get("summary")
    parts = given if isinstance(given, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _not_stored(param: str) -> RequestError:
    return invalid("responses are not stored here: send the whole input", param)


def _call_message(item: Record, path: str) -> Message:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "function": function}
    return ChatMessage(role="assistant", tool_calls=[call]).for_template(path)


def _merge_calls(messages: list[Message]) -> list[Message]:
    """The messages, with each call added to the assistant's message before it, if there is one."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else {}
        if message.get("tool_calls") and last.get("role") == "assistant":
            calls = [*last.get("tool_calls", []), *message["tool_calls"]]
            out[-1] = {**message, **last, "tool_calls": calls}
        else:
            out.append(message)
    return out


class ResponsesFormatter(Formatter[ResponsesBody]):
    """Writes a response, or its numbered events."""

    kind, prefix = "response", "resp"

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        super().__init__(service, body)
        self._numbers = count()

    def error_events(self, error: RequestError) -> list[str]:
        """An error in the format of this API."""
        return [self._event("error", **{**error.as_dict()["error"], "type": "error"})]

    def _event(self, name: str, /, **values: Any) -> str:
        return event({"type": name, "sequence_number": next(self._numbers), **values}, name)

    async def full_response(self, answers: Answers) -> Record:
        """The whole response."""
        blocks, finish = await collect_blocks(answers.deltas())
        return _completed(self._response([_item(block) for block in blocks]), answers, finish)

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The events of a streamed response."""
        output = list[Record]()
        response = self._response(output)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        async for each in block_events(answers.deltas()):
            if each.type == "stop" and each.block.is_complete:
                output.append(_item(each.block))
            if each.type == "end":
                response = _completed(response, answers, each.finish)
                yield self._event(f"response.{response['status']}", response=response)
                continue
            for name, values in _block_events(each):
                yield self._event(name, output_index=each.block.index, **values)

    def _response(self, output: list[Record]) -> Record:
        body = self.body
        return {
            "id": self.head["id"].replace("-", "_"), "object": "response",
            "created_at": self.head["created"], "model": self.head["model"],
            "status": "in_progress", "output": output, "error": None,
            "incomplete_details": None, "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": body.tool_choice or "auto",
            "tools": [each for each in body.tools or () if each.get("type") == "function"],
            "temperature": body.temperature, "top_p": body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "text": body.text or {"format": {"type": "text"}}, "previous_response_id": None,
        }  # fmt: skip


def _item(block: Block, status: str | None = None) -> Record:
    is_incomplete = block.is_truncated or not block.is_complete
    status = status or ("incomplete" if is_incomplete else "completed")
    if block.call is not None:
        return {
            "type": "function_call", "id": f"fc_{block.id}", "call_id": block.call.id,
            "name": block.call.name, "arguments": block.text, "status": status,
        }  # fmt: skip
    if block.kind == "thought":
        content = [_part(block)] if block.text else []
        return {"type": "reasoning", "id": f"rs_{block.id}", "summary": [], "content": content}
    content = [] if status == "in_progress" else [_part(block)]
    return {
        "type": "message", "id": f"msg_{block.id}", "role": "assistant", "status": status,
        "content": content,
    }  # fmt: skip


def _part(block: Block) -> Record:
    if block.kind == "thought":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _completed(response: Record, answers: Answers, finish: str) -> Record:
    count = usage(answers.turns)
    is_truncated = finish == "length"
    return {
        **response,
        "status": "incomplete" if is_truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_truncated else None,
        "usage": {
            "input_tokens": count["prompt_tokens"],
            "input_tokens_details": {**count["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": count["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": count["total_tokens"],
        },
        "timings": timings(answers.turns),
    }


def _block_events(given: BlockEvent) -> list[tuple[str, Record]]:
    """The name and the fields of each event of the API."""
    block = given.block
    item, text = _item(block, "in_progress"), block.text
    if block.kind == "call":
        base = "response.function_call_arguments"
        ids: Record = {"item_id": item["id"]}
        done: list[tuple[str, Record]] = [
            (f"{base}.done", {**ids, "arguments": text, "name": item["name"]})
        ]
        added: list[tuple[str, Record]] = []
    else:
        base = "response.output_text" if block.kind == "text" else "response.reasoning_text"
        ids = {"item_id": item["id"], "content_index": 0}
        extra: Record = {"logprobs": []} if block.kind == "text" else {}
        done = [
            (f"{base}.done", {**ids, "text": text, **extra}),
            ("response.content_part.done", {**ids, "part": _part(block)}),
        ]
        added = [("response.content_part.added", {**ids, "part": _part(block)})]
        ids = {**ids, **extra}
    if given.type == "start":
        return [("response.output_item.added", {"item": item}), *added]
    if given.type == "delta":
        return [(f"{base}.delta", {**ids, "delta": given.text})]
    return [*done, ("response.output_item.done", {"item": _item(block)})]
