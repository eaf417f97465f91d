"""Request bodies of the OpenAI routes. What is not named here is ignored, as clients expect."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dspark_gguf.serve.asked import Asked, Message
from dspark_gguf.serve.refusals import invalid

#: Names of `Sampling` that clients may give.
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "repeat_last_n", "logit_bias", "ignore_eos", "seed",
)  # fmt: skip
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """What every route that answers takes."""

    model_config = ConfigDict(extra="ignore")

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
    logit_bias: dict[str, _Number] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    speculation: str | None = None

    def asked(self) -> Asked:
        """The part of the request that all routes have."""
        values = {name: getattr(self, name) for name in _SAMPLING}
        if values["top_p"] == 0.0:  # OpenAI allows it, for the best token alone
            values["top_p"] = 1e-6
        if values["seed"] is not None and values["seed"] < 0:
            values["seed"] = None
        if values["logit_bias"] is not None and len(values["logit_bias"]) > 1024:
            raise invalid("logit_bias of at most 1024 tokens", "logit_bias")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        most = self.max_tokens
        return Asked(
            sampling=values,
            max_tokens=None if most is None or most < 0 else most,
            stop=[each for each in stop if each],
            drafts=self.speculation != "off",
        )


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class ChatMessage(BaseModel):
    """A message; what else a template knows of it goes there as it is."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def plain(self, place: str) -> Message:
        """With text as content, and the arguments of calls as objects: what templates read."""
        extra = {k: v for k, v in (self.model_extra or {}).items() if v is not None}
        role = "system" if self.role == "developer" else self.role
        if role not in ("system", "user", "assistant", "tool"):
            raise invalid(f"{place}.role: no such role: {self.role}", "messages")
        message = {**extra, "role": role, "content": text_of(self.content, f"{place}.content")}
        if self.tool_calls:
            message["tool_calls"] = [_call(each, place) for each in self.tool_calls]
        return message


class ChatBody(Body):
    """``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(max_length=10_000)
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=256)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    reasoning_format: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def asked(self) -> Asked:
        """The request that this is."""
        asked = super().asked()
        asked.messages = [each.plain(f"messages[{k}]") for k, each in enumerate(self.messages)]
        if self.max_completion_tokens is not None:
            asked.max_tokens = max(0, self.max_completion_tokens)
        asked.n = 1 if self.n is None else self.n
        asked.top = (self.top_logprobs or 0) if self.logprobs else None
        asked.tools = [function_of(each, k) for k, each in enumerate(self.tools or ())]
        asked.tool_choice = choice_of(self.tool_choice)
        asked.many_calls = self.parallel_tool_calls is not False
        asked.schema = schema_of(self.response_format) if self.response_format else self.json_schema
        asked.grammar = self.grammar
        think = (self.chat_template_kwargs or {}).get("enable_thinking")
        asked.think = think if isinstance(think, bool) else None
        asked.splits = self.reasoning_format != "none"
        return asked


class CompletionBody(Body):
    """``/v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]] = ""
    suffix: str | None = None
    echo: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: int | bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


def text_of(content: str | list[dict[str, Any]] | None, place: str) -> str:
    """Content as text, from text or from parts."""
    if content is None or isinstance(content, str):
        return content or ""
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


def function_of(tool: dict[str, Any], k: int) -> dict[str, Any]:
    """Name, description and parameters of a tool."""
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"tools[{k}] is not a function with a name", "tools")
    return tool_of(function["name"], function.get("description"), function.get("parameters"), k)


def tool_of(name: str, description: Any, parameters: Any, k: int) -> dict[str, Any]:
    """The same, checked."""
    if not name or len(name) > 128:
        raise invalid(f"tools[{k}]: a name of 1 to 128 characters is needed", "tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"tools[{k}]: parameters must be a JSON schema", "tools")
    given = {"name": name, "description": str(description) if description else ""}
    return {**given, "parameters": parameters or {"type": "object", "properties": {}}}


def choice_of(choice: str | dict[str, Any] | None) -> str:
    """OpenAI's ``tool_choice``: auto, none, required, or a name."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid(f"tool_choice: {choice} is not auto, none or required", "tool_choice")
        return choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    if not isinstance(name, str):
        raise invalid("tool_choice names no function", "tool_choice")
    return name


def _call(call: dict[str, Any], place: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{place}.tool_calls: a function with a name is needed", "messages")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {"arguments": arguments}  # what a model wrote wrongly, sent back to it
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def schema_of(format: dict[str, Any]) -> dict[str, Any] | None:
    """Of OpenAI's ``response_format``; None: text."""
    kind = format.get("type")
    if kind == "text":
        return None
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
