"""``/v1/messages``: Anthropic's shape of the pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.serve.asked import Asked, Message
from dspark_gguf.serve.blocks import Block, Step, steps
from dspark_gguf.serve.bodies import Body, text_of, tool_of
from dspark_gguf.serve.pieces import Answers
from dspark_gguf.serve.refusals import invalid
from dspark_gguf.serve.streams import event
from dspark_gguf.serve.usage import timings, usage

Record = dict[str, Any]


class Turned(BaseModel):
    """A message."""

    role: str
    content: str | list[dict[str, Any]]


class MessagesBody(Body):
    """The request; tools of other types than functions are left out."""

    model_config = ConfigDict(extra="ignore")

    messages: list[Turned] = Field(max_length=10_000)
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=256)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def asked(self) -> Asked:
        """The request that this is."""
        asked = super().asked()
        asked.stop = [each for each in self.stop_sequences or () if each] or asked.stop
        system = text_of(self.system, "system")
        asked.messages = [{"role": "system", "content": system}] if system else []
        for k, message in enumerate(self.messages):
            asked.messages += _messages(message, f"messages[{k}]")
        asked.tools = [
            tool_of(str(each.get("name", "")), each.get("description"), each["input_schema"], k)
            for k, each in enumerate(self.tools or ())
            if "input_schema" in each
        ]
        choice = self.tool_choice or {}
        names = {"any": "required", "tool": str(choice.get("name")), "none": "none"}
        asked.tool_choice = names.get(str(choice.get("type")), "auto") if asked.tools else "auto"
        asked.many_calls = not choice.get("disable_parallel_tool_use")
        kind = (self.thinking or {}).get("type")
        asked.think = {"enabled": True, "adaptive": None, "disabled": False}.get(str(kind))
        return asked


def _messages(message: Turned, place: str) -> list[Message]:
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
            content = text_of(part.get("content"), f"{place}.content")
            result = {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": content}
            out.append(result)
        elif kind == "tool_use":
            function = {"name": str(part.get("name")), "arguments": part.get("input") or {}}
            call = {"id": part.get("id"), "type": "function", "function": function}
            more.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            more["reasoning_content"] = str(part.get("thinking", ""))
        elif kind != "redacted_thinking":
            texts.append(part)
    if texts or more:
        content = text_of(texts, f"{place}.content")
        out.append({"role": message.role, "content": content, **more})
    return out


def _usage(answers: Answers) -> Record:
    count = usage(answers.turns)
    cached = count["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": count["prompt_tokens"] - cached,
        "output_tokens": count["completion_tokens"],
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def _message(head: Record, answers: Answers) -> Record:
    return {
        "id": head["id"], "type": "message", "role": "assistant", "model": head["model"],
        "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(answers),
    }  # fmt: skip


def _stopped(answers: Answers, finish: str, vocabulary: Vocabulary) -> Record:
    """Why it ended, in Anthropic's words."""
    turn = answers.turns[0]
    names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    if finish == "stop" and turn.limits.stop:
        said = vocabulary.detokenize(turn.answer.tokens)
        for stop in turn.limits.stop:
            if stop in said:
                return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": names[finish], "stop_sequence": None}


def _content(block: Block) -> Record:
    if block.call is not None:
        arguments = json.loads(block.text) if block.text else {}
        return {
            "type": "tool_use",
            "id": block.call.id,
            "name": block.call.name,
            "input": arguments,
        }
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


async def message_answer(answers: Answers, head: Record, vocabulary: Vocabulary) -> Record:
    """The whole message."""
    content, finish = [], "stop"
    async for step in steps(answers.pieces()):
        if step.what == "closes":
            content.append(_content(step.block))
        finish = step.finish
    message = _message(head, answers)
    ended = _stopped(answers, finish, vocabulary)
    return {**message, "content": content, **ended, "timings": timings(answers.turns)}


async def message_events(
    answers: Answers, head: Record, vocabulary: Vocabulary
) -> AsyncIterator[str]:
    """The events of a stream."""
    start = _message(head, answers)
    start["usage"]["input_tokens"] = len(answers.turns[0].prompt)
    yield _event("message_start", message=start)
    async for step in steps(answers.pieces()):
        if step.what == "ends":
            ended = _stopped(answers, step.finish, vocabulary)
            numbers = {"usage": _usage(answers), "timings": timings(answers.turns)}
            yield _event("message_delta", delta=ended, **numbers)
        else:
            yield _of_block(step)
    yield _event("message_stop")


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
