"""Requests, independent of the API, and their conversion into turns for the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from dspark_gguf.chat.think import CLOSE, MISTRAL, OPEN
from dspark_gguf.config import Limits, Sampling, Settings
from dspark_gguf.engine.grammar import Grammar
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import UsageError
from dspark_gguf.noise import Noise, some_seed
from dspark_gguf.sampling import Sampler
from dspark_gguf.serve.deltas import DeltaParser
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.schemas import (
    after_thinking,
    call_schema,
    client_grammar,
    schema_grammar,
)
from dspark_gguf.serve.tools import TAGS, ToolCallParser
from dspark_gguf.serve.turns import Turn

#: Has ``role`` and ``content``, and what else the template reads.
Message = dict[str, Any]
#: Maximum numbers of answers, stop strings and top log-probabilities of a request.
MAX_CHOICES, _MAX_STOPS, _MAX_TOP_LOGPROBS = 16, 16, 20
#: A placeholder for text; Unicode reserves it for internal use.
_MARK = "\ufdd0"


@dataclass
class ParsedRequest:
    """A request, independent of the API that it came through.

    Attributes:
        messages: a conversation; None: `prompt`, text or token ids, is continued instead.
        sampling: overrides the server's settings, by the names of `Sampling`, except where None.
        tools: each with ``name``, ``description`` and ``parameters`` (a JSON schema).
        tool_choice: auto, none, required, or the name of a tool.
        parallel_calls: False: an answer has one tool call at most.
        schema: JSON schema of the answer; ``{}``: any JSON object.
        grammar: GBNF of the answer.
        top_logprobs: most probable tokens to report with each token; None: no log-probabilities.
        think: whether the template lets the model think; None: the template's default.
        splits_thoughts: whether thoughts are separated from the text.
        drafts: False: plain decoding.
    """

    messages: list[Message] | None = None
    prompt: str | list[int] = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    tools: list[Mapping[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    parallel_calls: bool = True
    schema: Mapping[str, Any] | None = None
    grammar: str | None = None
    top_logprobs: int | None = None
    think: bool | None = None
    splits_thoughts: bool = True
    drafts: bool = True

    @property
    def continues_message(self) -> bool:
        """Whether the answer continues the last message, which is the assistant's."""
        last = self.messages[-1] if self.messages else {}
        return last.get("role") == "assistant" and not last.get("tool_calls")


class RequestParser:
    """Converts requests into turns, with the pair's template and tokenizer.

    It may run in any thread while the engine runs: it uses no context of llama.cpp.
    """

    def __init__(self, pair: Pair, settings: Settings) -> None:
        self.pair, self.settings = pair, settings
        source = pair.template.source
        self.supports_tools = "tools" in source
        tags = {OPEN: OPEN, CLOSE: CLOSE, **MISTRAL}
        has_tags = any(tag in source for tag in tags)
        self.supports_thinking = has_tags or pair.template.switches_thinking
        self._call_tags = _control_tokens(pair.vocabulary, {tag: tag for tag in TAGS})
        self._thought_tags = _control_tokens(pair.vocabulary, tags)

    def prompt(self, request: ParsedRequest) -> tuple[list[int], bool]:
        """The token ids of the prompt, and whether it ends inside a thought.

        Raises:
            RequestError: there are no messages, or the token ids are invalid.
            UsageError: the template rejects the messages.
        """
        if request.messages is None:
            vocabulary, given = self.pair.vocabulary, request.prompt
            if isinstance(given, str):
                return vocabulary.tokenize(given), False
            return require_ids(given, vocabulary, "prompt"), False
        messages, variables = _with_one_system(request.messages), dict[str, Any]()
        if not messages:
            raise invalid("messages is empty", "messages")
        system = self.settings.chat.system
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        if request.tools and request.tool_choice != "none":
            if self.supports_tools:
                variables["tools"] = [_function(tool) for tool in request.tools]
            else:
                messages = _with_tools(messages, request.tools)
        if not self.supports_tools:
            messages = [_without_calls(each) for each in messages]
        think = self.settings.chat.think if request.think is None else request.think

        def render(part: list[Message]) -> str:
            return self.pair.template.render(part, think, **variables)

        text = _continued(messages, render) if request.continues_message else render(messages)
        return self.pair.template.tokenize(text), text.rstrip().endswith(OPEN)

    def turns(self, request: ParsedRequest) -> list[tuple[Turn, DeltaParser]]:
        """A turn for each of the `n` answers, and the parser of its text.

        Raises:
            RequestError: a parameter is invalid, or the prompt does not fit into the context.
            UsageError: this model does not support the request.
        """
        if not 1 <= request.n <= MAX_CHOICES:
            raise invalid(f"n must be from 1 to {MAX_CHOICES}", "n")
        if not 0 <= (request.top_logprobs or 0) <= _MAX_TOP_LOGPROBS:
            raise invalid(f"top_logprobs must be from 0 to {_MAX_TOP_LOGPROBS}", "top_logprobs")
        prompt, inside = self.prompt(request)
        n_ctx = self.pair.target_cache.n_ctx
        if not prompt:
            raise invalid("the prompt is empty")
        if len(prompt) >= n_ctx:
            message = (
                f"This model's maximum context length is {n_ctx} tokens. However, your messages "
                f"resulted in {len(prompt)} tokens. Please reduce the length of the messages."
            )
            raise invalid(message, "messages", "context_length_exceeded")
        sampling, limits = self._settings(request, inside)
        seed = some_seed(sampling.seed)
        tools = {str(tool["name"]): tool.get("parameters") or {} for tool in request.tools}
        has_calls = bool(tools) and request.tool_choice != "none"
        is_forced = request.tool_choice not in ("auto", "none")
        thinks = self._may_think(request, inside)
        spelled = (self._call_tags if has_calls else {}) | (self._thought_tags if thinks else {})
        turns = []
        for k in range(request.n):
            turn = Turn(
                prompt, sampling, limits, Noise.of(seed, k), k,
                top_logprobs=request.top_logprobs, drafts=request.drafts, spelled=spelled,
            )  # fmt: skip
            starts_inside = inside if request.splits_thoughts and thinks else None
            calls = ToolCallParser(tools, request.parallel_calls, is_forced) if has_calls else None
            turns.append((turn, DeltaParser(starts_inside, calls, request.continues_message)))
        return turns

    def _may_think(self, request: ParsedRequest, inside: bool) -> bool:
        return request.messages is not None and (self.supports_thinking or inside)

    def _settings(self, request: ParsedRequest, inside: bool) -> tuple[Sampling, Limits]:
        overrides = {name: value for name, value in request.sampling.items() if value is not None}
        values = self.settings.sampling.model_dump() | overrides
        limits = self.settings.limits.model_dump()
        if request.max_tokens is not None:
            limits["max_tokens"] = request.max_tokens
        if request.stop:
            limits["stop"] = tuple(request.stop)
        if len(limits["stop"]) > _MAX_STOPS or any(len(each) > 1000 for each in limits["stop"]):
            raise invalid(f"at most {_MAX_STOPS} stop strings of 1000 characters", "stop")
        grammar = self._grammar(request)
        if grammar is not None:
            if self._may_think(request, inside):
                grammar = after_thinking(grammar, inside)
            Grammar(self.pair.vocabulary, grammar)  # fails if it is invalid
            # At the end of a grammar, only an end token may follow.
            values |= {"grammar": grammar, "json_schema": None, "ignore_eos": False}
        try:
            sampling, checked_limits = Sampling(**values), Limits(**limits)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "sampling"
            raise invalid(f"{name}: {first['msg']}", name) from None
        Sampler.of(sampling, self.pair.vocabulary)  # fails if the model does not support it
        return sampling, checked_limits

    def _grammar(self, request: ParsedRequest) -> str | None:
        choice = request.tool_choice
        if choice not in ("auto", "none"):
            tools = [t for t in request.tools if choice in ("required", t["name"])]
            if not tools:
                raise invalid(f"tool_choice is {choice}: there is no tool for it", "tool_choice")
            return schema_grammar(call_schema(tools))
        if request.schema is not None:
            return schema_grammar(dict(request.schema) or {"type": "object"})
        return None if request.grammar is None else client_grammar(request.grammar)


def _control_tokens(vocabulary: Vocabulary, tags: Mapping[str, str]) -> dict[int, bytes]:
    """The ids of the tags that are control tokens, which have no text, and the text to use."""
    ids = [(vocabulary.tokenize(tag, add_bos=False), text.encode()) for tag, text in tags.items()]
    tokens = {found[0]: text for found, text in ids if len(found) == 1}
    return {token: text for token, text in tokens.items() if not vocabulary.piece(token)}


def require_ids(ids: list[int], vocabulary: Vocabulary, param: str) -> list[int]:
    """The same ids; a `RequestError` if one is not in the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary.n_vocab:
        raise invalid(f"token ids must be from 0 to {vocabulary.n_vocab - 1}", param)
    return ids


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": dict(tool)}


def _with_tools(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages whose system prompt describes the tools, for a template without support for them."""
    text, (first, *rest) = _instructions(tools), messages
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, first, *rest]


def _with_one_system(messages: list[Message]) -> list[Message]:
    """The messages with leading system messages joined: many templates reject a second one."""
    count = next((k for k, each in enumerate(messages) if each["role"] != "system"), len(messages))
    if count < 2:
        return messages
    content = "\n\n".join(each["content"] for each in messages[:count])
    return [{"role": "system", "content": content}, *messages[count:]]


def _continued(messages: list[Message], render: Callable[[list[Message]], str]) -> str:
    """The prompt up to the end of the last message's content, where the template puts it."""
    *before, last = messages
    prompt = render(before)
    with suppress(UsageError):  # a template may require that the last message is the user's
        start, found, _ = render([*before, {**last, "content": _MARK}]).partition(_MARK)
        if found and start.startswith(prompt):
            return start + str(last["content"])
    if prompt.rstrip().endswith(OPEN):
        prompt += f"{last.get('reasoning_content') or ''}\n{CLOSE}\n\n"
    return prompt + str(last["content"])


def _without_calls(message: Message) -> Message:
    """The message with calls and results as text, for a template without support for them."""
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    if not message.get("tool_calls"):
        return message
    calls = "".join(
        f"\n<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    )
    return {"role": message["role"], "content": (message["content"] + calls).strip()}


def _instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """A description of the tools, in the words of Hermes' template."""
    lines = "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
    return (
        "You may call one or more functions to assist with the user query.\n\nYou are provided "
        f"with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f'<tool_call></tool_call> XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": '
        f"<args-json-object>}}\n</tool_call>"
    )
