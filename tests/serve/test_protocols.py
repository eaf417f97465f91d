"""``/v1/messages`` and ``/v1/responses`` through their own clients, streamed and not."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")

from dspark_gguf.serve.bodies import ChatBody  # noqa: E402
from dspark_gguf.serve.messages import MessagesBody  # noqa: E402
from dspark_gguf.serve.responses import ResponsesBody  # noqa: E402
from tests.serve.running import running  # noqa: E402
from tests.serve.scripted import write_script  # noqa: E402
from tests.serve.test_rules import CALLS, PLAIN, TOOLS  # noqa: E402

USER = [{"role": "user", "content": "hello"}]
ADD = TOOLS[0]["function"]
THOUGHT_AND_CALL = f"Hm, hm.\n</think>\n\n{CALLS}"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "thinker.gguf"
    with running([write_script(path, THOUGHT_AND_CALL)], settings=PLAIN) as one:
        yield one


@pytest.fixture
def claude(server):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as one:
        yield one


def test_messages_whole_and_streamed(claude):
    options = {"model": "x", "max_tokens": 12, "messages": USER, "system": "be"}
    whole = claude.messages.create(**options)
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 12
    with claude.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 12


def test_tokens_of_messages_are_counted(claude):
    count = claude.messages.count_tokens(model="x", messages=USER, system="be").input_tokens
    used = claude.messages.create(model="x", messages=USER, system="be", max_tokens=1).usage
    assert count == used.input_tokens + used.cache_read_input_tokens


def test_errors_are_in_anthropics_shape(claude):
    anthropic = pytest.importorskip("anthropic")
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long.*1024"):
        claude.messages.create(
            model="x", max_tokens=1, messages=[{"role": "user", "content": "x" * 3000}]
        )


def test_thoughts_and_tools_of_messages(scripted):
    anthropic = pytest.importorskip("anthropic")
    tool = {"name": "add", "description": "", "input_schema": ADD["parameters"]}
    other = {"type": "web_search_20250305", "name": "web_search"}
    options = {
        "model": "x", "max_tokens": 500, "messages": USER, "tools": [tool, other],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }  # fmt: skip
    with anthropic.Anthropic(base_url=scripted.url, api_key="x", max_retries=0) as claude:
        whole = claude.messages.create(**options)
        kinds = [block.type for block in whole.content]
        assert kinds == ["thinking", "text", "tool_use", "tool_use"]
        assert [each.input for each in whole.content[2:]] == [{"a": 1}, {"a": 22}]
        assert whole.stop_reason == "tool_use"
        with claude.messages.stream(**options) as stream:
            final = stream.get_final_message()
        for one, two in zip(whole.content, final.content, strict=True):
            same = {"id"}
            assert one.model_dump(exclude=same) == two.model_dump(exclude=same)
        results = [
            {"type": "tool_result", "tool_use_id": each.id, "content": "2"}
            for each in whole.content[2:]
        ]
        again = [
            *USER,
            {"role": "assistant", "content": [each.model_dump() for each in whole.content]},
            {"role": "user", "content": results},
        ]
        assert claude.messages.create(**{**options, "messages": again}).content


def test_a_thread_that_goes_on_is_not_there(claude):
    """Its client then sends the whole conversation; without it, the answer would be to its end."""
    anthropic = pytest.importorskip("anthropic")
    options = {"model": "x", "max_tokens": 1, "messages": USER}
    assert claude.messages.create(**options, extra_body={"thread": {"type": "create"}}).content
    going_on = {"thread": {"type": "continue", "previous_message_id": "msg_1"}}
    with pytest.raises(anthropic.NotFoundError, match="stored") as refusal:
        claude.messages.create(**options, extra_body=going_on)
    assert refusal.value.body["error"]["details"] == {"error_code": "thread_not_found"}


def test_documents_that_are_text_are_read(claude):
    source = {"type": "text", "media_type": "text/plain", "data": "Blue."}
    document = {"type": "document", "source": source, "title": "Sky"}
    parts = {"type": "content", "content": [{"type": "text", "text": "Green."}]}
    other = {"type": "document", "source": parts}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [other]}
    search = {"type": "search_result", "source": "x", "title": "Sea", "content": parts["content"]}
    user = {"role": "user", "content": [document, result, search]}
    found = MessagesBody(messages=[user]).to_request().messages
    assert [each["content"] for each in found] == ["Green.", "Sky\nBlue.\nSea\nGreen."]
    anthropic = pytest.importorskip("anthropic")
    for source in ({"type": "base64", "data": "AAAA"}, {"type": "url", "url": "x"}, 1, None):
        user = {"role": "user", "content": [{**document, "source": source}]}
        with pytest.raises(anthropic.BadRequestError, match="of type document"):
            claude.messages.create(model="x", max_tokens=1, messages=[user])


def test_models_are_listed_in_anthropics_shape_too(claude, client):
    [one] = claude.models.list().data
    assert (one.type, one.display_name) == ("model", one.id)
    assert one.created_at.timestamp() == client.models.retrieve(one.id).created
    assert [each.id for each in claude.models.list()] == [one.id], "one page"


def test_a_stop_sequence_is_named(claude):
    options = {"model": "x", "max_tokens": 30, "messages": USER}
    text = claude.messages.create(**options).content[0].text
    stop = text[len(text) // 2 :][:2]
    cut = claude.messages.create(**options, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)


def test_responses_whole_and_streamed(client):
    options = {"model": "x", "input": "hello", "instructions": "be", "max_output_tokens": 12}
    whole = client.responses.create(**options)
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 12
    events = list(client.responses.create(**options, stream=True))
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    [done] = [each.item for each in events if each.type == "response.output_item.done"]
    items = [whole.output[0], events[-1].response.output[0], done]
    assert [item.status for item in items] == ["incomplete"] * 3
    assert all(item.content[0].text == whole.output_text for item in items)
    with client.responses.stream(**options) as stream:
        for _ in stream:
            pass


def test_a_message_can_be_json(claude):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    options = {"model": "x", "max_tokens": 200, "messages": USER}
    answer = claude.messages.create(**options, output_config=form)
    assert json.loads(answer.content[0].text)["ok"] in (True, False)
    assert claude.messages.create(**options, output_config={"effort": "low"}).content


def test_a_response_can_be_json(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    answer = client.responses.create(model="x", input="hello", text=form, max_output_tokens=200)
    assert json.loads(answer.output_text)["ok"] in (True, False)


def test_tools_of_responses(scripted):
    tools = [{"type": "function", "strict": None, **ADD}, {"type": "web_search"}]
    options = {"model": "x", "input": USER, "tools": tools}
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="x", max_retries=0) as client:
        whole = client.responses.create(**options, instructions="x")
        kinds = [item.type for item in whole.output]
        assert kinds[-2:] == ["function_call"] * 2
        assert [json.loads(each.arguments) for each in whole.output[-2:]] == [{"a": 1}, {"a": 22}]
        events = list(client.responses.create(**options, instructions="x", stream=True))
        done = [e.item for e in events if e.type == "response.output_item.done"]
        assert [item.type for item in done] == kinds, events[-1]
        again = [
            *USER,
            *(item.model_dump(exclude_none=True) for item in whole.output),
            *(
                {"type": "function_call_output", "call_id": item.call_id, "output": "2"}
                for item in whole.output[-2:]
            ),
        ]
        assert client.responses.create(model="x", input=again, tools=tools).output


@pytest.mark.parametrize(
    "stored",
    [
        {"previous_response_id": "resp_1"}, {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}}, {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_stored_response_is_not_there(client, stored):
    with pytest.raises(openai.BadRequestError, match="stored"):
        client.responses.create(**{"model": "x", "input": "x", **stored})


def test_thoughts_are_given_back_to_what_was_said_after_them():
    def thought(text):
        return {"type": "reasoning", "summary": [], "content": [{"text": text}]}

    said = {"role": "assistant", "content": [{"type": "output_text", "text": "A"}]}
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "1"}
    short = {"type": "reasoning", "summary": [{"text": "S"}]}
    given = [thought("T"), said, call, result, short, call, result, thought("U"), *USER, said]
    for wrong in (5, "x", [1]):
        given.append({"type": "reasoning", "content": wrong})
    found = ResponsesBody(input=given).to_request().messages
    assert [(each["role"], each.get("reasoning_content")) for each in found] == [
        ("assistant", "T"), ("tool", None), ("assistant", "S"), ("tool", None), ("user", None),
        ("assistant", None),
    ]  # fmt: skip
    assert found[0]["content"] == "A"
    assert found[0]["tool_calls"]


def test_no_effort_is_no_thought():
    for effort, think in (("none", False), ("low", None), (None, None)):
        assert ChatBody(messages=USER, reasoning_effort=effort).to_request().think is think
        assert ResponsesBody(input="x", reasoning={"effort": effort}).to_request().think is think
    own = {"enable_thinking": True}
    body = ChatBody(messages=USER, reasoning_effort="none", chat_template_kwargs=own)
    assert body.to_request().think is True


def test_tokens_of_responses_are_counted(client):
    found = client.responses.create(model="x", input="hello", max_output_tokens=1).usage
    path = "/responses/input_tokens"
    count = client.post(path, body={"model": "x", "input": "hello"}, cast_to=object)
    assert count == {"object": "response.input_tokens", "input_tokens": found.input_tokens}


def test_an_item_without_a_type_is_a_message():
    for item in ({**USER[0], "type": None}, USER[0]):
        assert ResponsesBody(input=[item]).to_request().messages == USER


def test_the_error_of_a_response_has_a_number_too(tiny_pair, capfd):
    with running(tiny_pair) as server:

        def broken():
            raise ValueError

        server.engine.batcher.step = broken
        answer = server.http.post("/v1/responses", json={"input": "x", "stream": True}).text
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    assert events[-1]["type"] == "error"
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
