"""Bodies as clients send them: what they mean, and where their faults are."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.serve.bodies import ChatBody, CompletionBody
from dspark_gguf.serve.messages import MessagesBody
from dspark_gguf.serve.responses import ResponsesBody
from tests.serve.test_refusals import refused

USER = [{"role": "user", "content": "hello"}]


def test_a_top_k_below_0_is_off(server):
    assert server.chat(max_tokens=2, top_k=-1).status_code == 200
    for top_k, found in ((-1, 0), (0, 0), (5, 5), (None, None)):
        assert ChatBody(messages=USER, top_k=top_k).to_request().sampling["top_k"] == found


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
        assert body.to_request().max_tokens == found


def test_no_suffix_and_no_prompt_are_as_if_left_out(server):
    body = {"prompt": "x", "suffix": "", "max_tokens": 2}
    assert server.http.post("/v1/completions", json=body).status_code == 200
    said = []
    for body in ({"prompt": None}, {}, {"prompt": [server.service.vocabulary.bos]}):
        answer = server.http.post("/v1/completions", json={"max_tokens": 8, "echo": True, **body})
        said.append(answer.json()["choices"])
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({"content": 5}, "messages.0.content", "a valid string or a valid list"),
        ({"content": [5]}, "messages.0.content.0", "a valid dictionary"),
        ({"content": "x", "tool_calls": [1]}, "messages.0.tool_calls.0", "a valid dictionary"),
        ({"role": None}, "messages.0.role", "a valid string"),
    ],
)
def test_a_fault_is_named_by_its_place_in_the_body(server, fields, place, said):
    body = {"messages": [{"role": "user", **fields}]}
    error = refused(server.http.post("/v1/chat/completions", json=body))
    assert error["message"] == f"{place}: Input should be {said}"
    assert error["param"] == place


def test_a_field_that_is_missing_or_a_body_that_is_none_is_named(server):
    error = refused(server.http.post("/v1/chat/completions", json={"messages": [{}]}))
    assert (error["message"], error["param"]) == (
        "messages.0.role: Field required",
        "messages.0.role",
    )
    error = refused(server.http.post("/v1/chat/completions", json=[]))
    assert error["message"].startswith("the body: ")


@pytest.mark.parametrize("given", [5, {}, [1], [[]], [{"type": "text", "text": 1}]], ids=str)
def test_a_result_of_a_tool_that_is_no_text_is_named(server, given):
    """It was a 500."""
    source = {"type": "content", "content": given}
    for part, place in (
        ({"type": "tool_result", "tool_use_id": "c1", "content": given}, "messages[0].content"),
        ({"type": "document", "source": source}, "messages[0].content.source.content"),
    ):
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        error = refused(server.http.post("/v1/messages", json=body))
        assert error["message"].startswith(place)


def test_broken_json_and_another_content_type_are_told_apart(server):
    kind = {"content-type": "application/json"}
    error = refused(server.http.post("/v1/chat/completions", content=b"{bad", headers=kind))
    assert error["message"].startswith("the body is not valid JSON: Expecting property name")
    assert error["param"] is None
    good = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'
    for kind in ({}, {"content-type": "text/plain"}):
        error = refused(server.http.post("/v1/chat/completions", content=good, headers=kind))
        assert "send Content-Type: application/json" in error["message"]


def test_head_is_get_without_a_body_and_405_says_what_is_allowed(server):
    for path in ("/health", "/", "/v1/models", "/metrics"):
        answer, whole = server.http.head(path), server.http.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == whole.headers["content-type"]
    for ask in (server.http.head, server.http.get):
        answer = ask("/v1/chat/completions")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    ],
    ids=str,
)
def test_a_schema_under_the_names_of_vllm(fields):
    for body in (
        ChatBody(messages=USER, response_format={"type": "text"}, **fields),
        CompletionBody(prompt="x", **fields),
        ResponsesBody(input="x", **fields),
        MessagesBody(messages=USER, **fields),
    ):
        assert body.to_request().schema == SCHEMA


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("chat/completions", {"functions": [{"name": "f"}]}, "functions"),
        ("chat/completions", {"function_call": {"name": "f"}}, "function_call"),
        ("chat/completions", {"guided_regex": "a"}, "guided_regex"),
        ("chat/completions", {"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ("chat/completions", {"guided_json": "{"}, "guided_json"),
        ("chat/completions", {"guided_json": [1]}, "guided_json"),
        ("completions", {"best_of": 3, "n": 2}, "best_of"),
        ("responses", {"background": True}, "background"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_its_name(server, path, fields, named):
    body = {"messages": USER, "prompt": "x", "input": "x", **fields}
    error = refused(server.http.post(f"/v1/{path}", json=body))
    assert error["param"] == named
    assert named in error["message"]


def test_a_call_of_the_older_kind_in_a_message_is_not_lost(server):
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
    error = refused(server.http.post("/v1/chat/completions", json={"messages": [*USER, call]}))
    assert "tool_calls" in error["message"]


def test_metadata_come_back(server):
    body = {"input": "hi", "max_output_tokens": 1, "metadata": {"user": "7"}}
    assert server.http.post("/v1/responses", json=body).json()["metadata"] == {"user": "7"}
