"""Tools as models are told of them whose template knows none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: With ``role`` and ``content``, as templates read them.
Message = dict[str, Any]


def with_instructions(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages that tell a model about tools which its template does not know."""
    text, (first, *rest) = _instructions(tools), messages
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, first, *rest]


def with_one_system(messages: list[Message]) -> list[Message]:
    """The system messages at the beginning as one: many templates take no second one."""
    count = next((k for k, each in enumerate(messages) if each["role"] != "system"), len(messages))
    if count < 2:
        return messages
    content = "\n\n".join(each["content"] for each in messages[:count])
    return [{"role": "system", "content": content}, *messages[count:]]


def without_calls(message: Message) -> Message:
    """Calls and results as text, for templates that know neither."""
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    if not message.get("tool_calls"):
        return message
    calls = "".join(
        f"\n<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    )
    return {"role": message["role"], "content": (message["content"] + calls).strip()}


def _instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """What Hermes' template says."""
    lines = "\n".join(
        json.dumps({"type": "function", "function": dict(tool)}, ensure_ascii=False)
        for tool in tools
    )
    return (
        "You may call one or more functions to assist with the user query.\n\nYou are provided "
        f"with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f'<tool_call></tool_call> XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": '
        f"<args-json-object>}}\n</tool_call>"
    )
