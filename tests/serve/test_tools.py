"""Tool calls: read from every family's text, however it is cut, and nothing is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from dspark_gguf.serve.tools import ToolCall, ToolCallParser
from tests.properties import given, settings, st

TOOLS = {"add": {"properties": {"a": {"type": "integer"}}}, "say": {
    "properties": {"text": {"type": "string"}}}}  # fmt: skip
ADD = '{"name": "add", "arguments": {"a": 1}}'
SAY = '{"name": "say", "arguments": {"text": "x </tool_call> } y"}}'


def read(parts, tools=TOOLS, parallel=True, is_forced=False):
    """Joined text, and the calls that are done as (name, arguments)."""
    text, calls, _ = read_all(parts, tools, parallel, is_forced)
    return text, [(each.name, json.loads(each.arguments)) for each in calls if each.done]


def read_all(parts, tools=TOOLS, parallel=True, is_forced=False):
    """Joined text, joined calls whether done or not, and how many parts each had."""
    reader, text, calls, counts = ToolCallParser(tools, parallel, is_forced), "", {}, []
    for k, part in enumerate(parts):
        for each in reader.feed(part, k == len(parts) - 1):
            if not isinstance(each, ToolCall):
                text += each
            elif each.id in calls:
                assert list(calls)[-1] == each.id, "parts of a call follow each other"
                assert not calls[each.id].done
                calls[each.id] = calls[each.id].plus(each)
                counts[-1] += 1
            else:
                assert each.name
                calls[each.id] = each
                counts.append(1)
    return text, list(calls.values()), counts


ONE, TWO = ("add", {"a": 1}), ("say", {"text": "x </tool_call> } y"})
CASES = {
    f"<tool_call>\n{ADD}\n</tool_call>": ("", [ONE]),
    f"<tool_call>{ADD}</tool_call>\n<tool_call>\n{SAY}\n</tool_call>\n": ("", [ONE, TWO]),
    f"I will.\n<tool_call>{ADD}</tool_call> done": ("I will.\n done", [ONE]),
    f"I will.\n<tool_call>{ADD}</tool_call>\n": ("I will.\n\n", [ONE]),
    f"So:\n<tool_call>{ADD}</tool_call>\n<tool_call>{SAY}</tool_call>.": ("So:\n.", [ONE, TWO]),
    f"<tool_call>{ADD}": ("", [ONE]),
    f"[TOOL_CALLS][{ADD}, {SAY}]": ("", [ONE, TWO]),
    f"[{ADD}, {SAY}]": ("", [ONE, TWO]),
    '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add{"a": 2}': ("", [ONE, ("add", {"a": 2})]),
    '{"name": "add", "parameters": {"a": 1}}': ("", [ONE]),
    '<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"name": "add"}':
        ("", [ONE, ("add", {})]),
    '{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}': ("", [ONE]),
    "<tool_call>\n<function=say>\n<parameter=text>\n12\n</parameter>\n</function>\n</tool_call>":
        ("", [("say", {"text": "12"})]),
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>":
        ("", [ONE]),
}  # fmt: skip
TEXTS = [
    '{"1type": "function", "function": {"name": "add", "arguments": {"a": 1}}}',
    "hello", "", " x < y [1] {2}", '{"answer": 42}', '{"name": "unknown", "parameters": {}}',
    "<tool_call>no json</tool_call> and more", f"<tool_call>{ADD[:-3]}", "[TOOL_CALLS]nothing",
    '[1, 2, {"a": 3}]', "{ not json } at all", "a <tool_call", "[", '{"name": 3}',
    f"[TOOL_CALLS]x{'[abcdefgh' * 40}!",
]  # fmt: skip


def cuts(text, places):
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)] or [""]


#: Begun as calls, and none after all.
BROKEN = [
    f"<tool_call>{ADD[:-3]}", f"<tool_call>{ADD[:-3]}oops}}}}</tool_call>.",
    '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', f"[TOOL_CALLS]{SAY[:-9]}",
    '[TOOL_CALLS]say[ARGS]{"text": "x\\q"} and more', f"<|python_tag|>{ADD[:-2]}, 1}}",
    "<tool_call><function=say><parameter=text>abc</parameter>x</function></tool_call>",
    '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>',
    f"[TOOL_CALLS][{ADD}, 3]", "<tool_call><function=say>\n<parameter=text>\nabc\n</par",
]  # fmt: skip


def says(parts, **options):
    """Joined text, and joined calls with their arguments to the letter."""
    text, calls, _ = read_all(parts, **options)
    return text, [(each.name, each.arguments) for each in calls if each.done]


@pytest.mark.parametrize("text", CASES)
def test_calls_are_found_wherever_the_text_is_cut_in_two_or_three(text):
    whole = says([text])
    for a in range(len(text) + 1):
        for b in (a, a + 1, len(text)):
            assert read(cuts(text, [a, b])) == CASES[text], (a, b)
            assert says(cuts(text, [a, b])) == whole, (a, b)


@settings(max_examples=150)
@given(st.sampled_from(list(CASES)), st.lists(st.integers(0, 150), max_size=12))
def test_calls_are_found_however_the_text_is_cut(text, places):
    assert read(cuts(text, places)) == CASES[text]
    assert says(cuts(text, places)) == says([text])


@settings(max_examples=150)
@given(st.sampled_from(TEXTS + BROKEN), st.lists(st.integers(0, 90), max_size=12))
def test_what_is_no_call_is_text_and_whole(text, places):
    assert read(cuts(text, places)) == (text, [])


@given(st.text(alphabet='<tool_ca>/{}[]":name,add TOLCS|py1\n', max_size=60))
def test_nothing_makes_it_fail_or_hang_and_text_without_calls_is_whole(text):
    for parts in ([text], list(text) or [""]):
        said, calls = read(parts)
        assert calls or said == text


@settings(max_examples=150)
@given(st.data())
def test_cuts_do_not_matter_to_what_is_nearly_a_call(data):
    text = data.draw(st.sampled_from([*CASES, *BROKEN]))
    place, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 3))
    put = data.draw(st.text(alphabet='{}[]",:\\ \nau1<>/', max_size=3))
    text = text[:place] + put + text[place + length :]
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    for options in ({}, {"is_forced": True}, {"parallel": False}):
        assert says(cuts(text, places), **options) == says([text], **options), text
        assert says(list(text) or [""], **options) == says([text], **options), text


@pytest.mark.parametrize("text", [text for text in CASES if text[0] not in "{["])
def test_arguments_stream(text):
    """Where a tag makes it a call; character by character there are many parts."""
    _, calls, counts = read_all(list(text))
    assert counts[0] >= min(4, len(calls[0].arguments) - 1)


def test_arguments_of_a_bare_call_stream_only_if_it_must_be_one():
    for is_forced, parts in ((False, 1), (True, 9)):
        _, [call], [count] = read_all(list(ADD), is_forced=is_forced)
        assert json.loads(call.arguments) == {"a": 1}
        assert count == parts


@pytest.mark.parametrize("text", BROKEN)
def test_of_what_turns_out_to_be_no_call_nothing_is_invented(text):
    _, calls, _ = read_all(list(text))
    assert [each.done for each in calls] == [False]
    assert calls[0].arguments in text or "<function" in text


def test_an_object_that_is_no_call_flows_at_once():
    reader = ToolCallParser(TOOLS)
    assert "".join(reader.feed('{"answer": [1,')) == '{"answer": [1,'


def test_text_flows_before_a_call_is_in_sight():
    reader = ToolCallParser(TOOLS)
    assert list(reader.feed("Let me think")) == ["Let me think"]
    assert list(reader.feed(" a < b")) == [" a < b"]


@pytest.mark.parametrize("text", [text for text, (_, calls) in CASES.items() if len(calls) == 2])
def test_only_one_call_where_parallel_ones_are_off(text):
    said, calls = CASES[text]
    assert read([text], parallel=False) == read(list(text), parallel=False) == (said, calls[:1])
