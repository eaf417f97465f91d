"""Tool calls: read from every family's text, however it is cut, and nothing is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_gguf.serve.tools import Call, CallReader

TOOLS = {"add": {"properties": {"a": {"type": "integer"}}}, "say": {
    "properties": {"text": {"type": "string"}}}}  # fmt: skip
ADD = '{"name": "add", "arguments": {"a": 1}}'
SAY = '{"name": "say", "arguments": {"text": "x </tool_call> } y"}}'


def read(parts, tools=TOOLS, many=True):
    """Joined text, and the calls as (name, arguments)."""
    reader, text, calls = CallReader(tools, many), "", []
    for k, part in enumerate(parts):
        for each in reader.feed(part, k == len(parts) - 1):
            if isinstance(each, Call):
                calls.append((each.name, json.loads(each.arguments)))
            else:
                text += each
    return text, calls


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
    "hello", "", " x < y [1] {2}", '{"answer": 42}', '{"name": "unknown", "parameters": {}}',
    "<tool_call>no json</tool_call> and more", f"<tool_call>{ADD[:-3]}", "[TOOL_CALLS]nothing",
    '[1, 2, {"a": 3}]', "{ not json } at all", "a <tool_call", "[", '{"name": 3}',
]  # fmt: skip


def cuts(text, places):
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)] or [""]


@pytest.mark.parametrize("text", CASES)
def test_calls_are_found_wherever_the_text_is_cut_in_two_or_three(text):
    for a in range(len(text) + 1):
        for b in (a, a + 1, len(text)):
            assert read(cuts(text, [a, b])) == CASES[text], (a, b)


@settings(max_examples=400)
@given(st.sampled_from(list(CASES)), st.lists(st.integers(0, 150), max_size=12))
def test_calls_are_found_however_the_text_is_cut(text, places):
    assert read(cuts(text, places)) == CASES[text]


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 60), max_size=12))
def test_what_is_no_call_is_text_and_whole(text, places):
    assert read(cuts(text, places)) == (text, [])


@given(st.text(alphabet='<tool_ca>/{}[]":name,add TOLCS|py1\n', max_size=60))
def test_nothing_makes_it_fail_or_hang_and_text_without_calls_is_whole(text):
    for parts in ([text], list(text) or [""]):
        said, calls = read(parts)
        assert calls or said == text


def test_text_flows_before_a_call_is_in_sight():
    reader = CallReader(TOOLS)
    assert list(reader.feed("Let me think")) == ["Let me think"]
    assert list(reader.feed(" a < b")) == [" a < b"]


def test_only_one_call_where_parallel_ones_are_off():
    text, calls = read([f"<tool_call>{ADD}</tool_call><tool_call>{SAY}</tool_call>"], many=False)
    assert calls == [ONE]
    assert SAY in text
