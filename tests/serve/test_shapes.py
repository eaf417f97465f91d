"""All that is sent is what the packages of OpenAI and Anthropic declare, but for `timings`."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

from anthropic.types import Message, RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.serve.test_protocols import ADD, USER, scripted
from tests.serve.test_rules import TOOLS

__all__ = ["scripted"]  # a fixture
#: Ours, llama-server's, and a count that older packages do not know.
MORE = {"timings", "reasoning_content", "cache_write_tokens"}
THINK = {"chat_template_kwargs": {"enable_thinking": True}}


def undeclared(value: Any) -> set[str]:
    """Names of fields that the types do not have."""
    if isinstance(value, list):
        return set().union(*map(undeclared, value))
    if not isinstance(value, BaseModel):
        return set()
    own = [
        getattr(value, name) for name in value.model_fields_set & type(value).model_fields.keys()
    ]
    return undeclared(own) | set(value.model_extra or ())


@pytest.mark.parametrize(
    ("path", "body", "whole", "part"),
    [
        ("chat/completions", {"messages": USER, "tools": TOOLS, **THINK},
         ChatCompletion, ChatCompletionChunk),
        ("chat/completions",
         {"messages": USER, "logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 3},
         ChatCompletion, ChatCompletionChunk),
        ("completions", {"prompt": "hello\n", "logprobs": 2, "max_tokens": 3},
         Completion, None),  # no package declares its chunks, whose finish is null
        ("responses", {"input": "hello", "tools": [{"type": "function", "strict": None, **ADD}]},
         Response, ResponseStreamEvent),
        ("responses", {"input": "hello", "max_output_tokens": 3}, Response, ResponseStreamEvent),
        ("messages", {"messages": USER, "max_tokens": 500, "thinking": {"type": "enabled"},
                      "tools": [{"name": "add", "input_schema": ADD["parameters"]}]},
         Message, RawMessageStreamEvent),
    ],
    ids=["chat with calls", "chats", "completion", "response with calls", "response", "message"],
)  # fmt: skip
def test_what_is_sent_is_declared_and_complete(scripted, path, body, whole, part):
    answer = scripted.http.post(f"/v1/{path}", json=body)
    sent = [(whole, answer.json())]
    usage = {"stream_options": {"include_usage": True}}
    lines = scripted.http.post(f"/v1/{path}", json={**body, **usage, "stream": True}).iter_lines()
    data = [line[6:] for line in lines if line.startswith("data: ") and "[DONE]" not in line]
    assert len(data) > 2
    sent += [(part, json.loads(each)) for each in data if part]
    for kind, each in sent:
        assert undeclared(TypeAdapter(kind).validate_python(each)) <= MORE, each
