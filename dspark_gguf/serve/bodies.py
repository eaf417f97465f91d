"""Request bodies of the OpenAI routes. Other names are ignored, but for those of `dialects`."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from dspark_gguf.config import Sampling
from dspark_gguf.serve.dialects import require_possible, schema_among
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.offered import choice_of, tool_of
from dspark_gguf.serve.parsing import Message, ParsedRequest

#: Bounds of a request.
MAX_MESSAGES, MAX_TOOLS, _MAX_BIASES = 10_000, 256, 1024


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"at most {_MAX_BIASES} tokens")
    return value


_Number = Annotated[float, Field(allow_inf_nan=False)]


class _AtFirst(FailFast):
    __hash__ = object.__hash__  # a union wants one


_T = TypeVar("_T")
#: A list that is refused at its first wrong item: to list millions of faults takes minutes.
Items = Annotated[list[_T], _AtFirst()]
_Bias = Annotated[dict[str, _Number], BeforeValidator(_few)]


class Body(BaseModel):
    """What every route that answers takes."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    top_k: int | None = None
    min_p: _Number | None = None
    typical_p: _Number | None = None
    repeat_penalty: _Number | None = None
    frequency_penalty: _Number | None = None
    presence_penalty: _Number | None = None
    repeat_last_n: int | None = None
    logit_bias: _Bias | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    speculation: str | None = None

    def to_request(self) -> ParsedRequest:
        """The part of the request that all routes have."""
        others = self.model_extra or {}
        require_possible(others)
        names = Sampling.model_fields.keys() & Body.model_fields.keys()
        values = {name: getattr(self, name) for name in names}
        if values["top_p"] == 0.0:  # OpenAI allows it, for the best token alone
            values["top_p"] = 1e-6
        if values["seed"] is not None and values["seed"] < 0:
            values["seed"] = None
        values["top_k"] = values["top_k"] and max(0, values["top_k"])  # below 0: off
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ParsedRequest(
            sampling=values,
            max_tokens=limit_of(self.max_tokens),
            stop=[each for each in stop if each],
            schema=schema_among(others),
            drafts=self.speculation != "off",
        )


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class StreamBody(Body):
    """What chats and completions have in common."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is."""
        asked = super().to_request()
        asked.n = 1 if self.n is None else self.n
        if self.best_of is not None and self.best_of > asked.n:
            raise invalid("best_of above n is not offered: send n, and choose", "best_of")
        asked.grammar = self.grammar
        if self.json_schema is not None:
            asked.schema = self.json_schema
        return asked

    @property
    def asks_usage(self) -> bool:
        """Whether a stream gets the usage in a chunk of its own."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ToolBody(Body):
    """What chats and responses have in common."""

    tools: Items[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is."""
        asked = super().to_request()
        asked.tool_choice, allowed = choice_of(self.tool_choice)
        found = (self.tool(each, k) for k, each in enumerate(self.tools or ()))
        asked.tools = [t for t in found if t and (allowed is None or t["name"] in allowed)]
        asked.many_calls = self.parallel_tool_calls is not False
        return asked

    @abstractmethod
    def tool(self, tool: dict[str, Any], k: int) -> dict[str, Any] | None:
        """Number `k`; None: it is left out."""


class ChatMessage(BaseModel):
    """A message; what else a template knows of it goes there as it is."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | Items[dict[str, Any]] | None = None
    tool_calls: Items[dict[str, Any]] | None = None

    def plain(self, place: str) -> Message:
        """With text as content, and the arguments of calls as objects: what templates read."""
        extra = {k: v for k, v in (self.model_extra or {}).items() if v is not None}
        require_possible(extra)
        role = "system" if self.role == "developer" else self.role
        if role not in ("system", "user", "assistant", "tool"):
            raise invalid(f"{place}.role: no such role: {self.role}", "messages")
        message = {**extra, "role": role, "content": text_of(self.content, f"{place}.content")}
        if self.tool_calls:
            message["tool_calls"] = [_call(each, place) for each in self.tool_calls]
        return message


class ChatBody(StreamBody, ToolBody):
    """``/v1/chat/completions``."""

    messages: Items[ChatMessage] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_format: str | None = None
    reasoning_effort: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is."""
        asked = super().to_request()
        asked.messages = [each.plain(f"messages[{k}]") for k, each in enumerate(self.messages)]
        if self.max_completion_tokens is not None:
            asked.max_tokens = limit_of(self.max_completion_tokens)
        asked.top = (self.top_logprobs or 0) if self.logprobs else None
        if self.response_format:
            asked.schema = schema_of(self.response_format, asked.schema)
        think = (self.chat_template_kwargs or {}).get("enable_thinking")
        asked.think = think if isinstance(think, bool) else thinks(self.reasoning_effort)
        asked.splits = self.reasoning_format != "none"
        return asked

    def tool(self, tool: dict[str, Any], k: int) -> dict[str, Any] | None:
        """Name, description and parameters of a function."""
        if tool.get("type") == "custom":  # takes a text of any form, which no template describes
            return None
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"tools[{k}] is not a function with a name", "tools")
        return tool_of(function, k)


class CompletionBody(StreamBody):
    """``/v1/completions``."""

    prompt: str | Items[int] | Items[str] | Items[Items[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | bool | None = None

    def to_request(self) -> ParsedRequest:
        """The request that this is, but for the prompts."""
        asked = super().to_request()
        if self.logprobs is not None and self.logprobs is not False:
            asked.top = int(self.logprobs)
        return asked

    def prompts(self) -> list[str | list[int]]:
        """Each of them as text or ids."""
        given: Any = "" if self.prompt is None else self.prompt
        is_one = isinstance(given, str) or all(isinstance(each, int) for each in given)
        return [given] if is_one else given


def thinks(effort: Any) -> bool | None:
    """Whether OpenAI's effort of reasoning lets a model think; None: as the template has it."""
    return False if effort == "none" else None


def limit_of(tokens: int | None) -> int | None:
    """Most tokens of an answer; below 0: no limit."""
    return None if tokens is None or tokens < 0 else tokens


def text_of(content: Any, place: str) -> str:
    """Content as text, from text or from parts; a `RequestError` for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise invalid(f"{place} is no text and no list of parts", "messages")
    texts: list[str] = []
    for k, part in enumerate(content):
        kind = part.get("type", "text")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise invalid(f"{place}[{k}] is of type {kind}: not text, all it reads", "messages")
        if not isinstance(text, str):
            raise invalid(f"{place}[{k}] has no text", "messages")
        texts.append(text)
    return "\n".join(texts)


def _call(call: dict[str, Any], place: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{place}.tool_calls: a function with a name is needed", "messages")
    arguments = arguments_of(function.get("arguments"))
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def arguments_of(given: Any) -> dict[str, Any]:
    """Of a past call, as templates read them; what a model wrote wrongly is sent back to it."""
    value = given or {}
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(given or "null")
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"arguments": value}


def schema_of(format: Any, other: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """Of OpenAI's ``response_format``; of text, or if it is no object, the `other` one."""
    kind = format.get("type") if isinstance(format, dict) else "text"
    if kind == "text":
        return other
    if kind == "json_object":
        schema = format.get("schema")  # llama-server's way
        return schema if isinstance(schema, dict) else {}
    if kind != "json_schema":
        raise invalid(f"response_format: no such type: {kind}", "response_format")
    wrapped = format.get("json_schema", format)
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict):
        raise invalid("response_format.json_schema.schema must be an object", "response_format")
    return schema
