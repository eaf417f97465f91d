"""``/v1/chat/completions`` through OpenAI's own client."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")

from dspark_gguf.serve.bodies import ChatBody  # noqa: E402
from tests.serve.running import running  # noqa: E402
from tests.serve.scripted import write_script  # noqa: E402
from tests.serve.test_rules import PLAIN  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]


def said(client, **options):
    """The same request whole and streamed: text and finish of each must agree."""
    options = {"model": "any", "messages": HELLO, "max_tokens": 12, **options}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        assert own[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    return whole, chunks


def test_streamed_and_whole_answers_are_the_same(client):
    whole, chunks = said(client)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    assert whole.model == chunks[0].model == "target"
    assert len(chunks) > 2


def test_a_seed_says_the_same_and_n_says_different_things(client):
    whole, _ = said(client, n=3, seed=5)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    again, _ = said(client, n=1, seed=5)
    assert again.choices[0].message.content == texts[0]
    assert whole.usage.completion_tokens == 36


def test_usage_comes_in_a_last_chunk_if_asked_for(client):
    stream = client.chat.completions.create(
        model="x", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    *rest, last = stream
    assert last.choices == []
    assert last.usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in rest)


def test_timings_count_the_drafts(server):
    timings = server.chat(max_tokens=30).json()["timings"]
    assert timings["predicted_n"] == 30
    assert 0 < timings["draft_n_accepted"] <= timings["draft_n"]
    assert timings["cache_n"] + timings["prompt_n"] > 5


def test_speculation_can_be_off_for_one_answer(server):
    drafted, plain = server.chat(max_tokens=30), server.chat(max_tokens=30, speculation="off")
    assert plain.json()["timings"]["draft_n"] == 0
    assert drafted.json()["timings"]["draft_n"] > 0
    assert drafted.json()["choices"] == plain.json()["choices"]


def test_a_stop_string_ends_the_answer(client):
    text = said(client, max_tokens=30)[0].choices[0].message.content
    stop = text[len(text) // 2 :][:2]
    whole, _ = said(client, max_tokens=30, stop=stop)
    assert whole.choices[0].message.content == text[: text.index(stop)]
    assert whole.choices[0].finish_reason == "stop"


def test_max_completion_tokens_is_the_newer_name(client):
    whole = client.chat.completions.create(model="x", messages=HELLO, max_completion_tokens=3)
    assert whole.usage.completion_tokens == 3


def test_content_may_be_parts_and_a_developer_is_the_system(server):
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    one = server.http.post(
        "/v1/chat/completions",
        json={
            "max_tokens": 8,
            "messages": [
                {"role": "developer", "content": "be"}, {"role": "user", "content": parts},
            ],
        },
    ).json()  # fmt: skip
    two = server.http.post(
        "/v1/chat/completions",
        json={
            "max_tokens": 8,
            "messages": [
                {"role": "system", "content": "be"}, {"role": "user", "content": "he\nllo"},
            ],
        },
    ).json()  # fmt: skip
    assert one["choices"] == two["choices"]


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def test_an_answer_can_be_json(client):
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    whole, _ = said(client, response_format=named, max_tokens=200)
    assert json.loads(whole.choices[0].message.content)["ok"] in (True, False)
    assert whole.choices[0].finish_reason == "stop"


def test_logprobs_are_the_targets_for_every_token(server, client):
    body = {"logprobs": True, "top_logprobs": 4, "max_tokens": 20, "temperature": 0}
    whole, chunks = said(client, **body)
    content = whole.choices[0].logprobs.content
    assert len(content) == 20
    assert all(entry.logprob <= 0 for entry in content)
    # Penalties change what is drawn, not what the target thinks.
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in content)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in content]
    for one, other in zip(streamed, content, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("thinks", [False, True])
def test_an_answer_that_is_begun_goes_on(tmp_path, thinks):
    """And holds what is new alone; a thought that the template opens is over."""
    with running([write_script(tmp_path / "a.gguf", " and so on.")], settings=PLAIN) as server:
        last = {"role": "assistant", "content": "One,\ntwo,\n", "reasoning_content": "Hm."}
        messages = [*HELLO, last]
        think = {"chat_template_kwargs": {"enable_thinking": thinks}}
        body = {"messages": messages, **think, "max_tokens": 50}
        message = server.http.post("/v1/chat/completions", json=body).json()["choices"][0][
            "message"
        ]
        assert message == {"role": "assistant", "content": " and so on."}
        ids, inside = server.service.parser.prompt(ChatBody(**body).to_request())
        text = server.service.vocabulary.detokenize(ids, special=True)
        thought = "<think>\nHm.\n</think>\n\n" if thinks else ""
        assert text.endswith(f"hello<|im_end|>\n<|im_start|>assistant\n{thought}One,\ntwo,\n")
        assert not inside
        last = {"role": "assistant", "content": [{"type": "text", "text": "One,\n"}]}
        body = {"messages": [*HELLO, last], "max_tokens": 50}
        [block] = server.http.post("/v1/messages", json=body).json()["content"]
        assert block["text"] == " and so on."
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        messages = [*HELLO, {"role": "assistant", "content": "x", "tool_calls": [call]}]
        ids, _ = server.service.parser.prompt(ChatBody(messages=messages).to_request())
        text = server.service.vocabulary.detokenize(ids, special=True)
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n"), "a call is no beginning"


#: What GPT-OSS's template does with answers: more than what asks for one.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_start|>assistant<|channel|>final<|message|> {{ m.content | trim }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
REFUSES = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "between"),
    [(CHANNELS, "<|channel|>final<|message|> "), (REFUSES + CHANNELS, "")],
)
def test_an_answer_that_is_begun_stands_where_its_template_puts_it(tmp_path, template, between):
    with running([write_script(tmp_path / "a.gguf", "x y", template)], settings=PLAIN) as server:
        body = ChatBody(messages=[*HELLO, {"role": "assistant", "content": "final a "}])
        ids, _ = server.service.parser.prompt(body.to_request())
        text = server.service.vocabulary.detokenize(ids, special=True)
    assert text.endswith(f"hello<|im_end|><|im_start|>assistant{between}final a ")


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["target"]
    assert client.models.retrieve("target").id == "target"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
