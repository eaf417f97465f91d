"""``/v1/responses``: OpenAI's newer shape of the pieces. Nothing is stored between requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from dspark_gguf.serve.blocks import Block, Step, steps, whole
from dspark_gguf.serve.bodies import (
    ChatMessage,
    Items,
    ToolBody,
    limit_of,
    schema_of,
    text_of,
    thinks,
)
from dspark_gguf.serve.errors import RequestError, invalid
from dspark_gguf.serve.form import Form, Record
from dspark_gguf.serve.offered import tool_of
from dspark_gguf.serve.parsing import Message, ParsedRequest
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.service import Service
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.turns import timings, usage


class ResponsesBody(ToolBody):
    """The request. Tools and items of types that are not known here are left out."""

    input: str | Items[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    metadata: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is."""
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name):
                raise _not_stored(name)
        asked = super().to_request()
        if self.max_output_tokens is not None:
            asked.max_tokens = limit_of(self.max_output_tokens)
        asked.messages = _messages(self.input)
        if self.instructions:
            asked.messages.insert(0, {"role": "system", "content": self.instructions})
        asked.schema = schema_of((self.text or {}).get("format"), asked.schema)
        asked.think = thinks((self.reasoning or {}).get("effort"))
        return asked

    def tool(self, tool: Record, k: int) -> Record | None:
        """Functions only."""
        return tool_of(tool, k) if tool.get("type") == "function" else None


def _messages(given: str | list[Record]) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    out: list[Message] = []
    thought = ""  # belongs to what the assistant says next
    for k, item in enumerate(given):
        place, kind = f"input[{k}]", item.get("type") or "message"
        if kind == "reasoning":
            thought = _thought(item)
        elif kind == "message":
            role, content = item.get("role"), item.get("content")
            if not isinstance(role, str) or not isinstance(content, str | list):
                raise invalid(f"{place} has no role or content", "input")
            if isinstance(content, list) and not all(isinstance(each, dict) for each in content):
                raise invalid(f"{place}.content is no list of parts", "input")
            out.append(ChatMessage(role=role, content=content).plain(place))
        elif kind == "item_reference":
            raise _not_stored("input")
        elif kind == "function_call":
            out.append(_called(item, place))
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            if isinstance(output, list) and all(isinstance(each, dict) for each in output):
                text = text_of(output, f"{place}.output")
            out.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        if thought and kind in ("message", "function_call"):
            if out[-1]["role"] == "assistant":
                out[-1]["reasoning_content"] = thought
            thought = ""
    return _joined(out)


def _thought(item: Record) -> str:
    """The text of a reasoning item, or else its summary."""
    parts = item.get("content") or item.get("summary")
    found = parts if isinstance(parts, list) else []
    return "".join(str(each.get("text", "")) for each in found if isinstance(each, dict))


def _not_stored(param: str) -> RequestError:
    return invalid("nothing is stored here: send the whole input", param)


def _called(item: Record, place: str) -> Message:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "function": function}
    return ChatMessage(role="assistant", tool_calls=[call]).plain(place)


def _joined(messages: list[Message]) -> list[Message]:
    """Calls belong to the assistant's message before them."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else {}
        if message.get("tool_calls") and last.get("role") == "assistant":
            calls = [*last.get("tool_calls", []), *message["tool_calls"]]
            out[-1] = {**message, **last, "tool_calls": calls}
        else:
            out.append(message)
    return out


class ResponsesForm(Form[ResponsesBody]):
    """Of one request."""

    kind, prefix = "response", "resp"

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        super().__init__(service, body)
        self._numbers = count()

    def broken(self, error: RequestError) -> list[str]:
        """An error as an event of this protocol."""
        return [self._event("error", **{**error.as_dict()["error"], "type": "error"})]

    def _event(self, name: str, /, **values: Any) -> str:
        return event({"type": name, "sequence_number": next(self._numbers), **values}, name)

    async def whole(self, answers: Answers) -> Record:
        """The whole response."""
        blocks, finish = await whole(answers.pieces())
        return _ended(self._response([_item(each) for each in blocks]), answers, finish)

    async def events(self, answers: Answers) -> AsyncIterator[str]:
        """The events of a stream, numbered."""
        made, output = self._event, list[Record]()
        response = self._response(output)
        yield made("response.created", response=response)
        yield made("response.in_progress", response=response)
        async for step in steps(answers.pieces()):
            if step.what == "closes" and step.block.is_whole:
                output.append(_item(step.block))
            if step.what == "ends":
                ended = _ended(response, answers, step.finish)
                yield made(f"response.{ended['status']}", response=ended)
                continue
            for name, values in _of_block(step):
                yield made(name, output_index=step.block.number, **values)

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
    status = status or ("incomplete" if block.is_cut or not block.is_whole else "completed")
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


def _ended(response: Record, answers: Answers, finish: str) -> Record:
    found = usage(answers.turns)
    numbers = {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {**found["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found["total_tokens"],
    }
    is_cut = finish == "length"
    return {
        **response,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": numbers,
        "timings": timings(answers.turns),
    }


def _of_block(step: Step) -> list[tuple[str, Record]]:
    """Names of events and what they say."""
    block = step.block
    item, text = _item(block, "in_progress"), block.text
    if block.kind == "call":
        base = "response.function_call_arguments"
        place: Record = {"item_id": item["id"]}
        done: list[tuple[str, Record]] = [
            (f"{base}.done", {**place, "arguments": text, "name": item["name"]})
        ]
        opened: list[tuple[str, Record]] = []
    else:
        base = "response.output_text" if block.kind == "text" else "response.reasoning_text"
        place = {"item_id": item["id"], "content_index": 0}
        extra: Record = {"logprobs": []} if block.kind == "text" else {}
        done = [
            (f"{base}.done", {**place, "text": text, **extra}),
            ("response.content_part.done", {**place, "part": _part(block)}),
        ]
        opened = [("response.content_part.added", {**place, "part": _part(block)})]
        place = {**place, **extra}
    if step.what == "opens":
        return [("response.output_item.added", {"item": item}), *opened]
    if step.what == "grows":
        return [(f"{base}.delta", {**place, "delta": step.text})]
    return [*done, ("response.output_item.done", {"item": _item(block)})]
