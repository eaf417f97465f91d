"""Tool calls: found in what a model says, and asked for by a grammar.

Families: Hermes and Qwen (``<tool_call>{...}</tool_call>``, or ``<function=...>`` inside), Mistral
(``[TOOL_CALLS]``), Llama 3 (a bare object, perhaps after ``<|python_tag|>``). What cannot be read
as a call is text, and never lost.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MISTRAL, _PYTHON = "[TOOL_CALLS]", "<|python_tag|>"
_OPENERS = (_OPEN, _MISTRAL, _PYTHON)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"[\s;,]*")
_STRING = re.compile(r'"(?:\\.|[^"\\])*("|$)', re.DOTALL)
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call; `arguments` is JSON text. Mistral's templates want ids of nine characters."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9], compare=False)


class CallReader:
    """Tells calls from text in a stream; `tools`: name -> schema of the parameters.

    With `many` off, only the first call is one.
    """

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], many: bool = True) -> None:
        self._tools, self._many = tools, many
        self._held = ""
        self._said = self._called = False
        self._fresh = True  # nothing but white space since the start or the last call

    def feed(self, text: str, ends: bool = False) -> Iterator[str | Call]:
        """Text and calls, in order. What may belong to a call is held back until the text `ends`.

        Text that is joined again, with the calls taken out, is what was said.
        """
        self._held += text
        while self._held:
            place = self._start()
            if place is None:
                kept = 0 if ends else self._undecided()
                yield from self._text(len(self._held) - kept)
                return
            if place and not (self._fresh and not self._held[:place].strip(self._between)):
                yield from self._text(place)
                continue
            found = self._calls(self._held[place:], ends)
            if found is None:
                return
            calls, length = found
            if not calls or (self._called and not self._many):
                yield from self._text(place + max(length, 1))
                continue
            self._held = self._held[place + length :]
            self._called = self._fresh = True
            yield from calls if self._many else calls[:1]

    @property
    def _between(self) -> str | None:
        """Characters that may stand before a call; None: white space."""
        return " \t\r\n;," if self._called and not self._said else None

    def _text(self, length: int) -> Iterator[str]:
        text, self._held = self._held[:length], self._held[length:]
        if self._called and not self._said and not text.strip():
            return  # line ends around calls
        if text.strip():
            self._said, self._fresh = True, False
        if text:
            yield text

    def _start(self) -> int | None:
        """Where a call may begin."""
        places = [place for each in _OPENERS if (place := self._held.find(each)) >= 0]
        bare = _BETWEEN.match(self._held) if self._called else re.match(r"\s*", self._held)
        if bare and not self._said and self._held[bare.end() : bare.end() + 1] in ("{", "["):
            places.append(bare.end())
        return min(places, default=None)

    def _undecided(self) -> int:
        """Characters at the end that an opener, or white space before it, may be."""
        held = self._held
        longest = min(len(held), max(map(len, _OPENERS)) - 1)
        begun = (n for n in range(longest, 0, -1) if any(o.startswith(held[-n:]) for o in _OPENERS))
        kept = next(begun, 0)
        if self._fresh and not held[: len(held) - kept].strip(self._between):
            return len(held)
        return kept

    def _calls(self, text: str, ends: bool) -> tuple[list[Call], int] | None:
        """The calls that `text` begins with, and their length; None: more text is needed."""
        opener = next((each for each in _OPENERS if text.startswith(each)), "")
        body, waits = text[len(opener) :], not ends
        if not opener and "}" not in body and waits:
            return None
        if opener == _OPEN:
            calls, length = self._function(body) or self._values(body)
            rest = body[length:].lstrip() if calls else ""
            if calls and rest.startswith(_CLOSE):
                return calls, len(text) - len(rest) + len(_CLOSE)
            if calls and waits and _CLOSE.startswith(rest):
                return None
            waits = waits and _CLOSE not in _STRING.sub("", body)
        elif opener == _MISTRAL and (named := _NAMED.match(body)):
            value, length = _value(body, named.end())
            arguments = value if isinstance(value, dict) else None
            calls = [] if arguments is None else [Call(named[1], _dumped(arguments))]
        else:
            calls, length = self._values(body, known=not opener)
        if calls:
            return calls, len(opener) + length
        return None if waits and not self._is_other(opener, body) else ([], len(opener))

    def _is_other(self, opener: str, body: str) -> bool:
        """Whether it is certain already that no call comes of it."""
        if opener:
            return False
        return _value(body, 0)[1] > 0 or not re.match(r'[\[{\s]*("|$)', body)

    def _function(self, body: str) -> tuple[list[Call], int] | None:
        """Qwen3-Coder's way; a value is JSON unless the tool wants text there."""
        found = _FUNCTION.match(body)
        if found is None:
            return None
        properties = self._tools.get(found[1], {}).get("properties", {})
        arguments = {
            name: text if _is_text(properties, name) else _json_or_text(text)
            for name, text in _PARAMETER.findall(found[2])
        }
        return [Call(found[1], _dumped(arguments))], found.end()

    def _values(self, body: str, known: bool = False) -> tuple[list[Call], int]:
        """Calls written as an object or a list of them; `known`: only of tools that there are."""
        value, length = _value(body, 0)
        values = value if isinstance(value, list) else [value]
        calls = [call for each in values if (call := _call(each))]
        if len(calls) < len(values) or (known and any(c.name not in self._tools for c in calls)):
            return [], 0
        return calls, length


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value there and its end; an end of 0: there is none, or not yet."""
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        return _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, 0


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(inner := value.get("function"), dict):
        value = inner
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json_or_text(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, _dumped(arguments))


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(properties: Any, name: str) -> bool:
    schema = properties.get(name) if isinstance(properties, dict) else None
    return isinstance(schema, dict) and schema.get("type") == "string"


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of the `tools`."""
    choices = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["name"]},
                "arguments": tool.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
        }
        for tool in tools
    ]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """For models whose template knows no tools: what Hermes' template tells them."""
    lines = "\n".join(_dumped({"type": "function", "function": dict(tool)}) for tool in tools)
    return (
        "You may call one or more functions to assist with the user query.\n\nYou are provided "
        f"with function signatures within <tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f'{_OPEN}{_CLOSE} XML tags:\n{_OPEN}\n{{"name": <function-name>, "arguments": '
        f"<args-json-object>}}\n{_CLOSE}"
    )
