"""Request bodies of OpenAI's APIs. Other parameters are ignored, except for those in `compat`."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from dspark_gguf.config import Sampling
from dspark_gguf.serve.compat import refuse_unsupported, vllm_schema
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.parsing import Message, ParsedRequest
from dspark_gguf.serve.tool_params import parse_tool, parse_tool_choice

#: Maximum numbers of messages, tools and biased tokens of a request.
MAX_MESSAGES, MAX_TOOLS, _MAX_BIASES = 10_000, 256, 1024


def _limit_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"at most {_MAX_BIASES} tokens")
    return value


_Number = Annotated[float, Field(allow_inf_nan=False)]


class _HashableFailFast(FailFast):
    __hash__ = object.__hash__  # needed in a union


_T = TypeVar("_T")
#: A list that is rejected at its first wrong item: reporting millions of errors takes minutes.
Items = Annotated[list[_T], _HashableFailFast()]
_Biases = Annotated[dict[str, _Number], BeforeValidator(_limit_biases)]


class Body(BaseModel):
    """The parameters that all APIs have in common."""

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
    logit_bias: _Biases | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    speculation: str | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body; a `RequestError` if it is invalid or not supported."""
        extra = self.model_extra or {}
        refuse_unsupported(extra)
        names = Sampling.model_fields.keys() & Body.model_fields.keys()
        values = {name: getattr(self, name) for name in names}
        if values["top_p"] == 0.0:  # OpenAI allows 0: always the most probable token
            values["top_p"] = 1e-6
        if values["seed"] is not None and values["seed"] < 0:
            values["seed"] = None
        values["top_k"] = values["top_k"] and max(0, values["top_k"])  # 0 and below: off
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ParsedRequest(
            sampling=values,
            max_tokens=token_limit(self.max_tokens),
            stop=[each for each in stop if each],
            schema=vllm_schema(extra),
            drafts=self.speculation != "off",
        )


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    include_usage: bool | None = None


class ChoicesBody(Body):
    """What chat completions and completions have in common."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body."""
        request = super().to_request()
        request.n = 1 if self.n is None else self.n
        if self.best_of is not None and self.best_of > request.n:
            raise invalid("best_of above n is not supported: send n, and choose", "best_of")
        request.grammar = self.grammar
        if self.json_schema is not None:
            request.schema = self.json_schema
        return request

    @property
    def wants_usage(self) -> bool:
        """Whether an extra chunk of a stream has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ToolBody(Body):
    """What chat completions and responses have in common."""

    tools: Items[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body."""
        request = super().to_request()
        request.tool_choice, allowed = parse_tool_choice(self.tool_choice)
        tools = (self.tool(each, k) for k, each in enumerate(self.tools or ()))
        request.tools = [t for t in tools if t and (allowed is None or t["name"] in allowed)]
        request.parallel_calls = self.parallel_tool_calls is not False
        return request

    @abstractmethod
    def tool(self, tool: dict[str, Any], k: int) -> dict[str, Any] | None:
        """Name, description and parameters of tool number `k`; None: the tool is ignored."""


class ChatMessage(BaseModel):
    """A message; its other fields are passed on to the template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | Items[dict[str, Any]] | None = None
    tool_calls: Items[dict[str, Any]] | None = None

    def for_template(self, path: str) -> Message:
        """The message as templates read it: content is text, arguments of calls are objects."""
        extra = {k: v for k, v in (self.model_extra or {}).items() if v is not None}
        refuse_unsupported(extra)
        role = "system" if self.role == "developer" else self.role
        if role not in ("system", "user", "assistant", "tool"):
            raise invalid(f"{path}.role: unknown role {self.role}", "messages")
        message = {**extra, "role": role, "content": text_content(self.content, f"{path}.content")}
        if self.tool_calls:
            message["tool_calls"] = [_call(each, path) for each in self.tool_calls]
        return message


class ChatBody(ChoicesBody, ToolBody):
    """The body of ``/v1/chat/completions``."""

    messages: Items[ChatMessage] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_format: str | None = None
    reasoning_effort: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body."""
        request = super().to_request()
        request.messages = [m.for_template(f"messages[{k}]") for k, m in enumerate(self.messages)]
        if self.max_completion_tokens is not None:
            request.max_tokens = token_limit(self.max_completion_tokens)
        request.top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        if self.response_format:
            request.schema = format_schema(self.response_format, request.schema)
        effort = thinking_of_effort(self.reasoning_effort)
        think = (self.chat_template_kwargs or {}).get("enable_thinking")
        request.think = think if isinstance(think, bool) else effort
        request.splits_thoughts = self.reasoning_format != "none"
        return request

    def tool(self, tool: dict[str, Any], k: int) -> dict[str, Any] | None:
        """A function; None for other tools."""
        if tool.get("type") == "custom":  # its input is free text, which no template describes
            return None
        function = tool.get("function")
        if not isinstance(function, dict):
            raise invalid(f"tools[{k}].function must be an object", "tools")
        return parse_tool(function, k)


class CompletionBody(ChoicesBody):
    """The body of ``/v1/completions``."""

    prompt: str | Items[int] | Items[str] | Items[Items[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | bool | None = None

    def to_request(self) -> ParsedRequest:
        """Parse the body except for the prompts."""
        request = super().to_request()
        if self.logprobs is not None and self.logprobs is not False:
            request.top_logprobs = int(self.logprobs)
        return request

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or token ids."""
        given: Any = "" if self.prompt is None else self.prompt
        is_single = isinstance(given, str) or all(isinstance(each, int) for each in given)
        return [given] if is_single else given


def thinking_of_effort(effort: Any) -> bool | None:
    """Whether to think with OpenAI's reasoning effort; None: the template's default."""
    return False if effort == "none" else None


def token_limit(tokens: int | None) -> int | None:
    """The maximum number of tokens of an answer; a negative number means no limit."""
    return None if tokens is None or tokens < 0 else tokens


def text_content(content: Any, path: str) -> str:
    """The text of content that is text or text parts; a `RequestError` with its path if not."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise invalid(f"{path} must be text or a list of parts", "messages")
    texts: list[str] = []
    for k, part in enumerate(content):
        kind = part.get("type", "text")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise invalid(f"{path}[{k}] is of type {kind}: only text is supported", "messages")
        if not isinstance(text, str):
            raise invalid(f"{path}[{k}] has no text", "messages")
        texts.append(text)
    return "\n".join(texts)


def _call(call: dict[str, Any], path: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{path}.tool_calls: each call needs a function with a name", "messages")
    arguments = call_arguments(function.get("arguments"))
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def call_arguments(given: Any) -> dict[str, Any]:
    """The arguments of a past call as an object; any other value is wrapped in one."""
    value = given or {}
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(given or "null")
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"arguments": value}


def format_schema(format: Any, default: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of OpenAI's ``response_format``; for text, or without a format, the default."""
    kind = format.get("type") if isinstance(format, dict) else "text"
    if kind == "text":
        return default
    if kind == "json_object":
        schema = format.get("schema")  # an extension of llama-server
        return schema if isinstance(schema, dict) else {}
    if kind != "json_schema":
        raise invalid(f"response_format: unknown type {kind}", "response_format")
    wrapped = format.get("json_schema", format)
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict):
        raise invalid("response_format.json_schema.schema must be an object", "response_format")
    return schema
