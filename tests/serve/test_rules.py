"""Thirteen ways in which servers break their clients, and the rule for each."""

from __future__ import annotations

import json

import httpx
import pytest

from dspark_gguf.config import Sampling, Settings, Speculation
from dspark_gguf.serve import streams
from tests.serve.running import running
from tests.serve.scripted import write_script

PLAIN = Settings(sampling=Sampling(temperature=0), speculation=Speculation(learn=False))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
]
CALLS = (
    'Let me.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name":"add","arguments":{"a":22}}\n</tool_call>'
)
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def says(tmp_path):
    """Starts a server whose model says a text."""
    opened = []

    def start(text, **options):
        files = [write_script(tmp_path / f"{len(opened)}.gguf", text)]
        opened.append(running(files, settings=PLAIN, **options))
        return opened[-1].__enter__()

    yield start
    for each in opened:
        each.__exit__(None, None, None)


def stream(server, **body):
    """The chunks of a streamed answer, as plain values, and its comments."""
    body = {"messages": USER, "stream": True, **body}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    data = [line[6:] for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data], [line for line in lines if line[0] == ":"]


def deltas(chunks):
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def test_rule_1_deltas_of_tool_calls(says):
    server = says(CALLS)
    whole = server.chat(tools=TOOLS).json()["choices"][0]
    chunks, _ = stream(server, tools=TOOLS)
    found = [call for delta in deltas(chunks) for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in found if "id" in call] == [0, 1]
    assert len({call["id"] for call in found if "id" in call}) == 2
    assert all("null" not in json.dumps(delta) for delta in deltas(chunks))
    streamed = [call["function"] for call in found if "id" in call]
    for call in found:
        if "id" not in call:
            assert set(call) == {"index", "function"}
            assert set(call["function"]) == {"arguments"}
            streamed[call["index"]]["arguments"] += call["function"]["arguments"]
    assert len(found) > 2, "the arguments come in pieces"
    assert streamed == [call["function"] for call in whole["message"]["tool_calls"]]
    assert [json.loads(each["arguments"]) for each in streamed] == [{"a": 1}, {"a": 22}]
    finishes = [c["choices"][0]["finish_reason"] for c in chunks]
    assert finishes[-1] == whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"].strip() == "Let me."


def test_rule_2_what_is_no_call_is_text(says):
    text = 'See <tool_call>{"name": add}</tool_call> and that.'
    server = says(text)
    assert server.chat(tools=TOOLS).json()["choices"][0]["message"]["content"] == text
    assert "".join(d.get("content", "") for d in deltas(stream(server, tools=TOOLS)[0])) == text


def test_rule_3_usage_id_and_model(says):
    server = says("Hello there.")
    chunks, _ = stream(server, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["id"] and chunk["model"] for chunk in chunks)
    unasked, _ = stream(server)
    assert unasked[-1]["choices"]
    for name in ("prompt_tokens", "completion_tokens"):
        assert unasked[-1]["usage"][name] == chunks[-1]["usage"][name]


def test_rule_4_content_is_a_string(says):
    chunks, _ = stream(says("Hello there."))
    found = deltas(chunks)
    assert found[0] == {"role": "assistant", "content": ""}
    assert all(isinstance(each.get("content", ""), str) for each in found)
    whole = says(CALLS[8:]).chat(tools=TOOLS).json()["choices"][0]["message"]
    assert whole["content"] == ""


THOUGHT = "I think so.\n</think>\n\nHello there."


def test_rule_5_reasoning_is_told_from_the_answer(says):
    server = says(THOUGHT)
    think = {"chat_template_kwargs": {"enable_thinking": True}}
    message = server.chat(**think).json()["choices"][0]["message"]
    assert message["content"] == "Hello there."
    assert message["reasoning_content"].strip() == "I think so."
    found = deltas(stream(server, **think)[0])
    for name in ("content", "reasoning_content"):
        assert "".join(each.get(name, "") for each in found) == message[name]
    raw = server.chat(reasoning_format="none", **think).json()["choices"][0]["message"]
    assert raw["content"] == THOUGHT
    again = [*USER, {"role": "assistant", **message}, *USER]
    answer = server.http.post("/v1/chat/completions", json={"messages": again, "max_tokens": 1})
    assert answer.status_code == 200


def test_rule_6_a_grammar_begins_after_the_thinking(says):
    server = says('Thinking.\n</think>\n\n{"ok": true}')
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    think = {"chat_template_kwargs": {"enable_thinking": True}}
    message = server.chat(response_format=named, **think).json()["choices"][0]["message"]
    assert json.loads(message["content"]) == {"ok": True}
    assert "Thinking." in message["reasoning_content"]
    for bad in ({"type": "string", "pattern": "\\b"}, {"not": {}}, {"type": "nothing"}):
        named["json_schema"]["schema"] = bad
        assert server.chat(response_format=named).status_code == 400, bad


def test_rule_7_cancelling():
    """In tests of what is refused: a stream, a plain request, and one in the queue."""
    from tests.serve import test_refusals

    assert [name for name in dir(test_refusals) if "leaves" in name]


def test_rule_8_comments_against_silence(tiny_pair, monkeypatch):
    monkeypatch.setattr(streams, "KEEPALIVE_SECONDS", 0.05)
    with running(tiny_pair) as server:
        server.slowed(0.3)
        _, comments = stream(server, max_tokens=2)
        assert len(comments) >= 3


def test_rule_9_an_overflow_is_400_with_both_numbers(server):
    error = server.chat("x" * 3000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1024" in error["message"]
    assert "30" in error["message"]


def test_rule_10_busy_is_429_with_retry_after(tiny_pair):
    with running(tiny_pair, parallel=1, queue=0) as server:
        server.slowed(0.05)
        body = {"messages": USER, "stream": True}
        with server.http.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()  # kept: httpx hangs up when nobody holds it any more
            next(lines)
            answer = server.chat(max_tokens=1)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1


def test_rule_11_conversations_that_alternate_keep_their_caches(tiny_pair):
    with running(tiny_pair) as server:
        for text in ("a" * 100, "b" * 100):
            server.chat(text, max_tokens=4)
        for text in ("a" * 100, "b" * 100):
            usage = server.chat(text, max_tokens=4).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] > 100


def test_rule_12_no_cors_and_both_kinds_of_keys(server, tiny_pair):
    answer = server.http.options(
        "/v1/chat/completions",
        headers={"Origin": "https://x.example", "Access-Control-Request-Method": "POST"},
    )
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert server.url.startswith("http://127.0.0.1:")
    for host in ("localhost:8080", "[::1]:80", "127.0.0.1", "host.docker.internal:8080"):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil"):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 403, (
            "a name of another site that leads here makes its pages ours"
        )
    with running(tiny_pair, key="k") as locked:
        for headers in ({"Authorization": "Bearer k"}, {"x-api-key": "k"}):
            found = httpx.get(f"{locked.url}/v1/models", headers=headers)
            assert found.status_code == 200
        assert httpx.get(f"{locked.url}/v1/models").status_code == 401
        named = {"Host": "models.example", "x-api-key": "k"}
        assert httpx.get(f"{locked.url}/v1/models", headers=named).status_code == 200


def test_rule_13_logprobs_with_drafts(server):
    answer = server.chat(max_tokens=30, logprobs=True, top_logprobs=1).json()
    assert answer["timings"]["draft_n_accepted"] > 0
    assert len(answer["choices"][0]["logprobs"]["content"]) == 30


def test_what_is_harmless_is_taken(server):
    assert (
        server.chat(max_tokens=1, model="gpt-99", unknown={"a": 1}, store=True).status_code == 200
    )
