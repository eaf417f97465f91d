"""Settings of requests, as clients send them."""

from __future__ import annotations

import pytest

from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.messages import MessagesBody
from dspark_gguf.serve.responses import ResponsesBody

USER = [{"role": "user", "content": "hello"}]


def test_a_top_k_below_0_is_off(server):
    assert server.chat(max_tokens=2, top_k=-1).status_code == 200
    for top_k, found in ((-1, 0), (0, 0), (5, 5), (None, None)):
        assert ChatBody(messages=USER, top_k=top_k).asked().sampling["top_k"] == found


@pytest.mark.parametrize("given", [-1, 0, 7, None])
def test_a_limit_below_0_is_none(given):
    found = None if given == -1 else given
    for body in (
        ChatBody(messages=USER, max_tokens=given),
        ChatBody(messages=USER, max_completion_tokens=given),
        ResponsesBody(input="x", max_output_tokens=given),
        MessagesBody(messages=USER, max_tokens=given),
        CompletionBody(prompt="x", max_tokens=given),
    ):
        assert body.asked().max_tokens == found


def test_no_suffix_and_no_prompt_are_as_if_left_out(server):
    body = {"prompt": "x", "suffix": "", "max_tokens": 2}
    assert server.http.post("/v1/completions", json=body).status_code == 200
    assert CompletionBody(prompt=None).prompts() == CompletionBody().prompts() == [""]
