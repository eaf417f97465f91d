"""What a request asks for, whatever route it came by, made into turns for the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
from dspark_gguf.serve.errors import invalid
from dspark_gguf.serve.pieces import PieceMaker
from dspark_gguf.serve.schemas import (
    after_thinking,
    call_schema,
    own_grammar,
    schema_grammar,
)
from dspark_gguf.serve.tools import TAGS, CallReader
from dspark_gguf.serve.turns import Turn

#: With ``role`` and ``content``, as templates read them.
Message = dict[str, Any]
#: Bounds of a request.
MAX_CHOICES, MAX_STOPS, MAX_TOP = 16, 16, 20
#: Stands where a text will: no character.
_MARK = "\ufdd0"


@dataclass
class ParsedRequest:
    """One request.

    Attributes:
        messages: a conversation; else `prompt` is given, as text or token ids.
        sampling: what differs from the server's settings, by the names of `Sampling`.
        tools: each with ``name``, ``description`` and ``parameters``.
        tool_choice: auto, none, required, or the name of a tool.
        schema: of the answer; ``{}``: any JSON object.
        top: log-probabilities of so many other tokens; None: none at all.
        think: whether the template lets the model think; None: as the template has it.
        splits: whether thoughts are told from the answer.
        drafts: off: plain decoding.
    """

    messages: list[Message] | None = None
    prompt: str | list[int] = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    tools: list[Mapping[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    many_calls: bool = True
    schema: Mapping[str, Any] | None = None
    grammar: str | None = None
    top: int | None = None
    think: bool | None = None
    splits: bool = True
    drafts: bool = True

    @property
    def is_begun(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        last = self.messages[-1] if self.messages else {}
        return last.get("role") == "assistant" and not last.get("tool_calls")


class RequestParser:
    """Makes turns of requests, with the pair's template and tokenizer.

    It runs beside the engine: nothing here touches a context of llama.cpp.
    """

    def __init__(self, pair: Pair, settings: Settings) -> None:
        self.pair, self.settings = pair, settings
        source = pair.template.source
        self.knows_tools = "tools" in source
        thoughts = {OPEN: OPEN, CLOSE: CLOSE, **MISTRAL}
        self.thinks = any(tag in source for tag in thoughts) or pair.template.switches_thinking
        self._call_tags = _spelled(pair.vocabulary, {tag: tag for tag in TAGS})
        self._thought_tags = _spelled(pair.vocabulary, thoughts)

    def prompt(self, asked: ParsedRequest) -> tuple[list[int], bool]:
        """Token ids, and whether they end inside a thought.

        An answer that is begun already, by the last message, goes on.

        Raises:
            UsageError: the template does not take these messages.
        """
        if asked.messages is None:
            ids = asked.prompt
            vocabulary = self.pair.vocabulary
            if isinstance(ids, str):
                return vocabulary.tokenize(ids), False
            return require_ids(ids, vocabulary, "prompt"), False
        messages, more = _with_one_system(asked.messages), dict[str, Any]()
        if not messages:
            raise invalid("messages is empty", "messages")
        system = self.settings.chat.system
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        if asked.tools and asked.tool_choice != "none":
            if self.knows_tools:
                more["tools"] = [{"type": "function", "function": dict(t)} for t in asked.tools]
            else:
                messages = _with_tools(messages, asked.tools)
        if not self.knows_tools:
            messages = [_without_calls(each) for each in messages]
        think = self.settings.chat.think if asked.think is None else asked.think

        def render(given: list[Message]) -> str:
            return self.pair.template.render(given, think, **more)

        text = _begun(messages, render) if asked.is_begun else render(messages)
        return self.pair.template.tokenize(text), text.rstrip().endswith(OPEN)

    def turns(self, asked: ParsedRequest) -> list[tuple[Turn, PieceMaker]]:
        """One for each of its `n` answers, with what reads it.

        Raises:
            RequestError: what this model or server cannot do.
            UsageError: likewise.
        """
        if not 1 <= asked.n <= MAX_CHOICES:
            raise invalid(f"n is from 1 to {MAX_CHOICES}", "n")
        if asked.top is not None and not 0 <= asked.top <= MAX_TOP:
            raise invalid(f"top_logprobs is from 0 to {MAX_TOP}", "top_logprobs")
        prompt, inside = self.prompt(asked)
        n_ctx = self.pair.target_cache.n_ctx
        if not prompt:
            raise invalid("the prompt is empty")
        if len(prompt) >= n_ctx:
            message = (
                f"This model's maximum context length is {n_ctx} tokens. However, your messages "
                f"resulted in {len(prompt)} tokens. Shorten them."
            )
            raise invalid(message, "messages", "context_length_exceeded")
        sampling, limits = self._settings(asked, inside)
        seed = some_seed(sampling.seed)
        tools = {str(tool["name"]): tool.get("parameters") or {} for tool in asked.tools}
        reads_calls = bool(tools) and asked.tool_choice != "none"
        is_sure = asked.tool_choice not in ("auto", "none")
        thinks = asked.messages is not None and (self.thinks or inside)
        spelled = (self._call_tags if reads_calls else {}) | (self._thought_tags if thinks else {})
        turn = partial(
            Turn, prompt, sampling, limits, top=asked.top, drafts=asked.drafts, spelled=spelled
        )
        return [
            (
                turn(draws=Noise.of(seed, k), index=k),
                PieceMaker(
                    inside if asked.splits and thinks else None,
                    CallReader(tools, asked.many_calls, is_sure) if reads_calls else None,
                    asked.is_begun,
                ),
            )
            for k in range(asked.n)
        ]

    def _settings(self, asked: ParsedRequest, inside: bool) -> tuple[Sampling, Limits]:
        own = self.settings
        given = {name: value for name, value in asked.sampling.items() if value is not None}
        values = own.sampling.model_dump() | given
        limits = own.limits.model_dump()
        if asked.max_tokens is not None:
            limits["max_tokens"] = asked.max_tokens
        if asked.stop:
            limits["stop"] = tuple(asked.stop)
        if len(limits["stop"]) > MAX_STOPS or any(len(each) > 1000 for each in limits["stop"]):
            raise invalid(f"at most {MAX_STOPS} stop strings of 1000 characters", "stop")
        grammar = self._grammar(asked)
        if grammar is not None:
            if asked.messages is not None and (self.thinks or inside):
                grammar = after_thinking(grammar, inside)
            Grammar(self.pair.vocabulary, grammar)
            # Where a grammar ends, nothing but the end may follow.
            values |= {"grammar": grammar, "json_schema": None, "ignore_eos": False}
        try:
            sampling, limits_ = Sampling(**values), Limits(**limits)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "sampling"
            raise invalid(f"{name}: {first['msg']}", name) from None
        Sampler.of(sampling, self.pair.vocabulary)
        return sampling, limits_

    def _grammar(self, asked: ParsedRequest) -> str | None:
        choice = asked.tool_choice
        if choice not in ("auto", "none"):
            tools = [t for t in asked.tools if choice in ("required", t["name"])]
            if not tools:
                raise invalid(f"tool_choice is {choice}: there is no tool for that", "tool_choice")
            return schema_grammar(call_schema(tools))
        if asked.schema is not None:
            return schema_grammar(dict(asked.schema) or {"type": "object"})
        return None if asked.grammar is None else own_grammar(asked.grammar)


def _spelled(vocabulary: Vocabulary, tags: Mapping[str, str]) -> dict[int, bytes]:
    """The control tokens among `tags`, which are empty text, and what is read in their place."""
    ids = [(vocabulary.tokenize(tag, add_bos=False), text.encode()) for tag, text in tags.items()]
    one = {found[0]: text for found, text in ids if len(found) == 1}
    return {token: text for token, text in one.items() if not vocabulary.piece(token)}


def require_ids(ids: list[int], vocabulary: Vocabulary, param: str) -> list[int]:
    """The same ids; a `RequestError` if the vocabulary has not all of them."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary.n_vocab:
        raise invalid(f"token ids are from 0 to {vocabulary.n_vocab - 1}", param)
    return ids


def _with_tools(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages that tell a model about tools which its template does not know."""
    text, (first, *rest) = _instructions(tools), messages
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, first, *rest]


def _with_one_system(messages: list[Message]) -> list[Message]:
    """The system messages at the beginning as one: many templates take no second one."""
    count = next((k for k, each in enumerate(messages) if each["role"] != "system"), len(messages))
    if count < 2:
        return messages
    content = "\n\n".join(each["content"] for each in messages[:count])
    return [{"role": "system", "content": content}, *messages[count:]]


def _begun(messages: list[Message], render: Callable[[list[Message]], str]) -> str:
    """The prompt up to the end of what the last message says, as the template writes that."""
    *before, last = messages
    prompt = render(before)
    with suppress(UsageError):  # a template may refuse an end that is not the user's
        start, found, _ = render([*before, {**last, "content": _MARK}]).partition(_MARK)
        if found and start.startswith(prompt):
            return start + str(last["content"])
    if prompt.rstrip().endswith(OPEN):
        prompt += f"{last.get('reasoning_content') or ''}\n{CLOSE}\n\n"
    return prompt + str(last["content"])


def _without_calls(message: Message) -> Message:
    """Calls and results as text, for templates that know neither."""
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
    """What Hermes' template says."""
    lines = "\n".join(
        json.dumps({"type": "function", "function": dict(tool)}, ensure_ascii=False)
        for tool in tools
    )
    return (
        "You may call one or more functions to assist with the user query.\n\nYou are provided "
        f"with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f'<tool_call></tool_call> XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": '
        f"<args-json-object>}}\n</tool_call>"
    )
