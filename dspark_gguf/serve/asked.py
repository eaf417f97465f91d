"""What a request asks for, whatever route it came by, made into turns for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from dspark_gguf.chat.think import OPEN
from dspark_gguf.config import Limits, Sampling, Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.noise import Noise, random_seed
from dspark_gguf.sampling import Sampler
from dspark_gguf.serve.pieces import PieceMaker
from dspark_gguf.serve.refusals import invalid
from dspark_gguf.serve.schemas import (
    after_thinking,
    call_schema,
    own_grammar,
    require_grammar,
    schema_grammar,
)
from dspark_gguf.serve.told import Message, with_instructions, with_one_system, without_calls
from dspark_gguf.serve.tools import CallReader
from dspark_gguf.serve.turns import Turn

#: Bounds of a request.
MOST_CHOICES, MOST_STOPS, MOST_TOP = 16, 16, 20


@dataclass
class Asked:
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


class Desk:
    """Makes turns of requests, with the pair's template and tokenizer.

    It runs beside the engine: nothing here touches a context of llama.cpp.
    """

    def __init__(self, pair: Pair, settings: Settings) -> None:
        self.pair, self.settings = pair, settings
        source = pair.template.source
        self.knows_tools = "tools" in source
        self.thinks = OPEN in source or pair.template.switches_thinking

    def prompt(self, asked: Asked) -> tuple[list[int], bool]:
        """Token ids, and whether they end inside a thought.

        Raises:
            UsageError: the template does not take these messages.

        """
        if asked.messages is None:
            ids = asked.prompt
            vocabulary = self.pair.vocabulary
            if isinstance(ids, str):
                return vocabulary.tokenize(ids), False
            return require_ids(ids, vocabulary, "prompt"), False
        messages, more = with_one_system(asked.messages), dict[str, Any]()
        if not messages:
            raise invalid("messages is empty", "messages")
        system = self.settings.chat.system
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        if asked.tools and asked.tool_choice != "none":
            if self.knows_tools:
                more["tools"] = [{"type": "function", "function": dict(t)} for t in asked.tools]
            else:
                messages = with_instructions(messages, asked.tools)
        if not self.knows_tools:
            messages = [without_calls(each) for each in messages]
        think = self.settings.chat.think if asked.think is None else asked.think
        text = self.pair.template.render(messages, think, **more)
        return self.pair.template.tokenize(text), text.rstrip().endswith(OPEN)

    def turns(self, asked: Asked) -> list[tuple[Turn, PieceMaker]]:
        """One for each of its `n` answers, with what reads it.

        Raises:
            Refusal: what this model or server cannot do.
            UsageError: likewise.

        """
        if not 1 <= asked.n <= MOST_CHOICES:
            raise invalid(f"n is from 1 to {MOST_CHOICES}", "n")
        if asked.top is not None and not 0 <= asked.top <= MOST_TOP:
            raise invalid(f"top_logprobs is from 0 to {MOST_TOP}", "top_logprobs")
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
        seed = random_seed() if sampling.seed is None else sampling.seed
        tools = {str(tool["name"]): tool.get("parameters") or {} for tool in asked.tools}
        reads_calls = bool(tools) and asked.tool_choice != "none"
        is_sure = asked.tool_choice not in ("auto", "none")
        splits = asked.splits and asked.messages is not None and (self.thinks or inside)
        return [
            (
                Turn(prompt, sampling, limits, Noise.of(seed, k), k, asked.top, asked.drafts),
                PieceMaker(
                    inside if splits else None,
                    CallReader(tools, asked.many_calls, is_sure) if reads_calls else None,
                ),
            )
            for k in range(asked.n)
        ]

    def _settings(self, asked: Asked, inside: bool) -> tuple[Sampling, Limits]:
        own = self.settings
        given = {name: value for name, value in asked.sampling.items() if value is not None}
        values = own.sampling.model_dump() | given
        limits = own.limits.model_dump()
        if asked.max_tokens is not None:
            limits["max_tokens"] = asked.max_tokens
        if asked.stop:
            limits["stop"] = tuple(asked.stop)
        if len(limits["stop"]) > MOST_STOPS or any(len(each) > 1000 for each in limits["stop"]):
            raise invalid(f"at most {MOST_STOPS} stop strings of 1000 characters", "stop")
        grammar = self._grammar(asked)
        if grammar is not None:
            if asked.messages is not None and (self.thinks or inside):
                grammar = after_thinking(grammar, inside)
            require_grammar(self.pair.vocabulary, grammar)
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

    def _grammar(self, asked: Asked) -> str | None:
        choice = asked.tool_choice
        if asked.tools and choice not in ("auto", "none"):
            tools = [t for t in asked.tools if choice in ("required", t["name"])]
            if not tools:
                raise invalid(f"tool_choice names no tool that there is: {choice}", "tool_choice")
            return schema_grammar(call_schema(tools))
        if asked.schema is not None:
            return schema_grammar(dict(asked.schema) or {"type": "object"})
        return None if asked.grammar is None else own_grammar(asked.grammar)


def require_ids(ids: list[int], vocabulary: Vocabulary, param: str) -> list[int]:
    """The same ids; a `Refusal` if the vocabulary has not all of them."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary.n_vocab:
        raise invalid(f"token ids are from 0 to {vocabulary.n_vocab - 1}", param)
    return ids
