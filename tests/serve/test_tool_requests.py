"""Tool calls: told from text, required, and given to templates as they read them."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.serve.bodies import ChatBody
from dspark_gguf.serve.errors import RequestError
from dspark_gguf.serve.messages import MessagesBody
from dspark_gguf.serve.responses import ResponsesBody
from dspark_gguf.serve.schemas import call_schema, schema_grammar
from tests.serve.running import running
from tests.serve.scripted import write_parts, write_script
from tests.serve.test_rules import PLAIN, TOOLS, USER, deltas, says, stream
from tests.tiny.test_json_schemas import fits, vocabulary

__all__ = ["says", "vocabulary"]  # fixtures


def test_a_call_that_breaks_off_is_text_and_its_parts_were_never_done(says):
    server = says('<tool_call>{"name": "add", "arguments": {"a": 1, oops}}</tool_call>')
    whole = server.chat(tools=TOOLS).json()["choices"][0]
    assert "tool_calls" not in whole["message"]
    chunks, _ = stream(server, tools=TOOLS)
    text = "".join(delta.get("content", "") for delta in deltas(chunks))
    assert text == whole["message"]["content"]
    assert text.startswith("<tool_call>")
    assert whole["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
    function = TOOLS[0]["function"]
    tool = {"name": "add", "input_schema": function["parameters"]}
    body = {"messages": USER, "tools": [tool], "max_tokens": 200}
    [block] = server.http.post("/v1/messages", json=body).json()["content"]
    assert block == {"type": "text", "text": text}
    body = {"input": "hello", "tools": [{"type": "function", **function}], "stream": True}
    lines = server.http.post("/v1/responses", json=body).text.splitlines()
    last = json.loads(lines[-2].removeprefix("data: "))["response"]
    assert [item["type"] for item in last["output"]] == ["message"]
    assert last["output"][0]["content"][0]["text"] == text


FAMILIES = {
    "mistral": ["[TOOL_CALLS]", "add", "[CALL_ID]", "x12", "[ARGS]", '{"a": ', "1}"],
    "hermes": ["<tool_call>", '{"name": "add", ', '"arguments": {"a": 1}}', "</tool_call>"],
    "llama": ["<|python_tag|>", '{"name": "add", ', '"parameters": {"a": 1}}'],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tags_may_be_control_tokens_which_have_no_text(tmp_path, family):
    """As in GGUFs of Mistral; with thoughts, tags of a thought, too."""
    parts = ["Hm.", "</think>", *FAMILIES[family]]
    control = [each for each in parts if each[0] in "<["]
    files = [write_parts(tmp_path / "a.gguf", parts, control)]
    think = {"chat_template_kwargs": {"enable_thinking": True}}
    with running(files, settings=PLAIN) as server:
        answer = server.chat(tools=TOOLS, **think).json()["choices"][0]
        [call] = answer["message"]["tool_calls"]
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
        assert answer["message"]["reasoning_content"] == "Hm."
        assert answer["message"]["content"] == ""
        body = {"prompt": "\n", "max_tokens": 50}
        text = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert text == "".join(each for each in parts if each not in control)
        text = server.chat(**think).json()["choices"][0]["message"]["content"]
        assert not any(each in text for each in control)


def test_thoughts_of_mistral_are_told_from_the_answer(tmp_path):
    parts = ["[THINK]", "Hm.", "[/THINK]", "Hello"]
    template = QWEN + "{# [THINK] #}"
    files = [write_parts(tmp_path / "a.gguf", parts, [parts[0], parts[2]], template)]
    with running(files, settings=PLAIN) as server:
        message = server.chat().json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hello")


def test_half_a_character_in_arguments_is_no_error(says):
    server = says('{"name": "add", "arguments": {"a": "\\ud83d"}}')
    [call] = server.chat(tools=TOOLS).json()["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": "\ud83d"}
    tool = {"name": "add", "input_schema": TOOLS[0]["function"]["parameters"]}
    body = {"messages": USER, "tools": [tool], "max_tokens": 200}
    answer = server.http.post("/v1/messages", json=body)
    assert answer.status_code == 200


def test_a_tool_can_be_required(server):
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        answer = server.chat(tools=TOOLS, tool_choice=choice, max_tokens=200).json()
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        [call] = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert isinstance(json.loads(call["function"]["arguments"])["a"], int)
    bad = {"type": "function", "function": {"name": "sub"}}
    assert server.chat(tools=TOOLS, tool_choice=bad).status_code == 400
    named = {"type": "function", "name": "add"}
    for path, body in (
        ("/v1/chat/completions", {"messages": USER, "tool_choice": "required"}),
        ("/v1/chat/completions", {"messages": USER, "tools": [], "tool_choice": named}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}],
                           "tool_choice": "required"}),
        ("/v1/messages", {"messages": USER, "tool_choice": {"type": "any"}}),
    ):  # fmt: skip
        answer = server.http.post(path, json={"max_tokens": 2, **body})
        assert answer.status_code == 400, (path, body)
        assert "there is no tool" in answer.json()["error"]["message"]
    none = server.chat(tools=TOOLS, tool_choice="none", max_tokens=5).json()["choices"][0]
    assert "tool_calls" not in none["message"]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_a_choice_may_allow_some_tools_alone(mode):
    """Agents keep their list of tools, which is in the cache, and narrow the choice."""
    tools = [{"name": name, "parameters": None} for name in ("add", "sub", "mul")]
    named = [{"type": "function", "name": "sub"}, {"type": "web_search"}]
    wrapped = [{"type": "function", "function": each} for each in tools]
    chosen = {"mode": mode, "tools": [wrapped[1]]}
    for asked in (
        ChatBody(
            messages=USER, tools=wrapped,
            tool_choice={"type": "allowed_tools", "allowed_tools": chosen},
        ),
        ResponsesBody(
            input="x", tools=[{"type": "function", **each} for each in tools],
            tool_choice={"type": "allowed_tools", "mode": mode, "tools": named},
        ),
    ):  # fmt: skip
        asked = asked.to_request()
        assert asked.tool_choice == mode
        assert [each["name"] for each in asked.tools] == ["sub"]
    for wrong in ({}, {"mode": mode}, {"tools": []}, {"mode": "sub", "tools": []}):
        with pytest.raises(RequestError, match="tool_choice"):
            ResponsesBody(input="x", tool_choice={"type": "allowed_tools", **wrong}).to_request()


def test_a_tool_that_takes_any_text_is_left_out():
    """As all kinds are that no template describes, and as in responses."""
    custom = {"type": "custom", "custom": {"name": "code"}}
    asked = ChatBody(messages=USER, tools=[custom, *TOOLS]).to_request()
    assert [each["name"] for each in asked.tools] == ["add"]


def test_a_conversation_with_calls_goes_on(server):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]  # fmt: skip
    body = {"messages": messages, "tools": TOOLS, "max_tokens": 2}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("null", {}), ("", {}), (None, {}), ("[1]", {"arguments": [1]}), ("3", {"arguments": 3}),
        ('"x"', {"arguments": "x"}), ("{bad", {"arguments": "{bad"}), ([1], {"arguments": [1]}),
        ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}),
    ],
)  # fmt: skip
def test_arguments_of_past_calls_are_objects_as_templates_read_them(given, read):
    call = {"id": "c1", "function": {"name": "add", "arguments": given}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    block = {"type": "tool_use", "id": "c1", "name": "add", "input": given}
    item = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": given}
    for body in (
        ChatBody(messages=messages), ResponsesBody(input=[item]),
        MessagesBody(messages=[{"role": "assistant", "content": [block]}]),
    ):  # fmt: skip
        [message] = body.to_request().messages
        assert message["tool_calls"][0]["function"]["arguments"] == read


#: What Qwen's template does with tools, calls and results, in short.
QWEN = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}="
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def test_a_template_gets_tools_and_arguments_as_it_reads_them(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]  # fmt: skip
    body = ChatBody(messages=messages, tools=TOOLS)

    def prompt(server, body):
        ids, _ = server.service.parser.prompt(body.to_request())
        return server.service.vocabulary.detokenize(ids, special=True)

    files = [write_script(tmp_path / "qwen.gguf", "yes", QWEN)]
    with running(files, settings=PLAIN) as server:
        text = prompt(server, body)
        assert f"<tools>{json.dumps(TOOLS[0])}</tools>" in text
        assert '<tool_call>add={"a": 1}</tool_call>' in text
        assert "<|im_start|>tool\n2" in text
    files = [write_script(tmp_path / "plain.gguf", "yes")]
    with running(files, settings=PLAIN) as server:
        text = prompt(server, body)
        assert text.startswith("<|im_start|>system\nYou may call")
        assert '"name": "add"' in text
        assert "<tool_response>\n2\n</tool_response>" in text
        two = [{"role": "system", "content": "one"}, {"role": "developer", "content": "two"}]
        text = prompt(server, ChatBody(messages=[*two, *USER]))
        assert text.count("<|im_start|>system") == 1, "many templates take no second one"
        assert "one\n\ntwo" in text


def test_a_required_tool_may_have_references(vocabulary, server):
    """As `openai.pydantic_function_tool` writes nested models; also to itself, and two alike."""
    tools = [
        {
            "name": name,
            "parameters": {
                "$defs": {"Place": {"enum": [name, 'C:\\the "bin"']}},
                "properties": {"at": {"$ref": "#/$defs/Place"}, "then": {"$ref": "#"}},
                "required": ["at"],
            },
        }
        for name in ("move", "copy")
    ]
    call = '{"name":"%s","arguments":%s}'
    for name, arguments, right in (
        ("move", '{"at":"move"}', True),
        ("copy", r'{"at":"copy","then":{"at":"C:\\the \"bin\"","then":{"at":"copy"}}}', True),
        ("copy", '{"at":"move"}', False),
        ("move", '{"at":"move","then":{"at":"copy"}}', False),
        ("move", '{"at":"move","then":{}}', False),
        ("move", "null", False),
    ):
        text = call % (name, arguments)
        assert fits(vocabulary, call_schema(tools), text) == right, text
    for choice in ("required", {"type": "function", "function": {"name": "copy"}}):
        asked = [{"type": "function", "function": tool} for tool in tools]
        answer = server.chat(tools=asked, tool_choice=choice, max_tokens=3)
        assert answer.status_code == 200, answer.text


def test_parameters_that_name_no_type_are_an_object(vocabulary):
    for given in ({"parameters": {"description": "any"}}, {"parameters": None}, {}):
        schema = call_schema([{"name": "f", **given}])
        for arguments, right in (("{}", True), ('{"a":[1]}', True), ("1", False)):
            text = f'{{"name":"f","arguments":{arguments}}}'
            assert fits(vocabulary, schema, text) == right, text


def test_parameters_that_are_nested_deeply_are_refused():
    deep = {}
    for _ in range(2000):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="nested too deeply"):
        call_schema([{"name": "f", "parameters": deep}])


def test_counts_do_not_multiply():
    """A least and a most length are one."""
    for word in ("Length", "Items"):
        schema_grammar({f"min{word}": 200, f"max{word}": 200})
