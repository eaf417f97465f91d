"""Finds tool calls in streamed text.

Formats: Hermes and Qwen (``<tool_call>{...}</tool_call>``, or ``<function=...>`` inside), Mistral
(``[TOOL_CALLS]``), Llama 3 (a JSON object, perhaps after ``<|python_tag|>``). Text that cannot be
parsed as a call stays text.

The arguments of a call are streamed once it has a tag (or a grammar requires the call), the name of
a known tool, and the start of its arguments. If the call then ends early or is invalid JSON, it is
never `done`, and its whole text follows as text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, NamedTuple

_OPEN, _CLOSE, _MISTRAL, _PYTHON = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_START_TAGS = (_OPEN, _MISTRAL, _PYTHON)
TAGS = (*_START_TAGS, _CLOSE, "[CALL_ID]", "[ARGS]")  # each may be a control token
#: Calls in Qwen3-Coder's format.
_FUNCTION, _FUNCTION_END = re.compile(r"\s*<function=([^>\s]+)>"), re.compile(r"\s*</function>\s*")
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_OPEN_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*)", re.DOTALL)
#: The name of a call in Mistral's format, up to its arguments.
_MISTRAL_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
#: A call in JSON, or the first one in a list, up to its arguments.
_JSON_HEAD = re.compile(
    r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
#: The start of a call without a tag.
_BARE = re.compile(r'[\[{\s]*(\Z|"\w*\Z|"(name|id|type|function|arguments|parameters)")', re.ASCII)
#: The rest of JSON that is invalid only because it was cut within a word, number or escape.
_CUT_JSON = re.compile(r"\s*(-|t(ru?)?|f(a(ls?)?)?|n(ul?)?|\.|[eE][+-]?|\\?u[0-9a-fA-F]{0,4})?")


def _finite(number: str) -> float:
    if isfinite(value := float(number)):
        return value
    raise ValueError(f"{number} cannot be written as JSON again")


_JSON = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


@dataclass(frozen=True)
class ToolCall:
    """A call, or a part of one; parts have the same `id`, come in order, and the last is `done`.

    `arguments` is JSON text. Mistral's templates require ids of nine characters.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9], compare=False)
    done: bool = True

    def plus(self, part: ToolCall) -> ToolCall:
        """Join this part and the next one."""
        return replace(self, arguments=self.arguments + part.arguments, done=part.done)


class _Match(NamedTuple):
    """The result of parsing text where a call may start."""

    calls: list[ToolCall]
    end: int  # of the calls; without calls, of the tag
    needs_more: bool = False  # whether more text may change the result
    first: ToolCall | None = None  # the part of the first call that more text cannot change


class ToolCallParser:
    """Separates calls from text in a stream.

    Args:
        tools: name -> JSON schema of the parameters.
        parallel: False: calls after the first are dropped.
        is_forced: whether a grammar forces the model to make a call.
    """

    def __init__(
        self, tools: Mapping[str, Mapping[str, Any]], parallel: bool = True, is_forced: bool = False
    ) -> None:
        self._tools, self._parallel, self._is_forced = tools, parallel, is_forced
        self._buffer = ""
        self._has_text = self._has_calls = False
        self._only_space = True  # no text but white space since the start or the last call
        self._sent: ToolCall | None = None  # the part of the current call that was returned

    def feed(self, text: str, ends: bool = False) -> Iterator[str | ToolCall]:
        """Add text; returns the text and the calls that are certain now, in order.

        What may belong to a call is held back, unless the text `ends` here. A call that is not
        parallel is dropped; all other text that is not part of a finished call is returned.
        """
        self._buffer += text
        while self._buffer:
            start = self._find_start()
            if start is None:
                held = 0 if ends else self._length_to_hold()
                yield from self._take_text(len(self._buffer) - held)
                return
            if start and not (self._only_space and not self._buffer[:start].strip(self._ignorable)):
                yield from self._take_text(start)
                continue
            is_allowed = self._parallel or not self._has_calls
            match = self._parse(self._buffer[start:])
            if match.needs_more and not ends:
                if match.first and match.first.name in self._tools and is_allowed:
                    yield from self._new_part(match.first)
                return
            if not match.calls:
                self._sent = None
                yield from self._take_text(start + max(match.end, 1))
                continue
            self._buffer = self._buffer[start + match.end :]
            self._has_calls = self._only_space = True
            if is_allowed:
                yield from self._new_part(match.calls[0])
                yield from match.calls[1:] if self._parallel else ()
            self._sent = None

    def _new_part(self, call: ToolCall) -> Iterator[ToolCall]:
        """The part of a call that was not returned yet, if any."""
        sent = self._sent or replace(call, arguments="", done=False)
        new = call.arguments[len(sent.arguments) :]
        if new or call.done or self._sent is None:
            yield replace(call, arguments=new, id=sent.id)
            self._sent = replace(call, id=sent.id)

    @property
    def _ignorable(self) -> str | None:
        """Characters that may come before a call, for `str.strip`; None: white space."""
        return " \t\r\n;," if self._has_calls and not self._has_text else None

    def _take_text(self, length: int) -> Iterator[str]:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        if self._has_calls and not self._has_text and not text.strip():
            return  # white space between calls
        if text.strip():
            self._has_text, self._only_space = True, False
        if text:
            yield text

    def _find_start(self) -> int | None:
        """The first position in the buffer where a call may start; None: there is none."""
        starts = [start for tag in _START_TAGS if (start := self._buffer.find(tag)) >= 0]
        bare = re.match(r"[\s;,]*" if self._has_calls else r"\s*", self._buffer)
        if bare and not self._has_text and self._buffer[bare.end() : bare.end() + 1] in ("{", "["):
            starts.append(bare.end())
        return min(starts, default=None)

    def _length_to_hold(self) -> int:
        """Characters at the end of the buffer that may start a tag, or be white space before it."""
        buffer = self._buffer
        longest = min(len(buffer), max(map(len, _START_TAGS)) - 1)
        ends = (buffer[-n:] for n in range(longest, 0, -1))
        length = next((len(end) for end in ends if any(t.startswith(end) for t in _START_TAGS)), 0)
        if self._only_space and not buffer[: len(buffer) - length].strip(self._ignorable):
            return len(buffer)
        return length

    def _parse(self, text: str) -> _Match:
        """Parse the calls at the start of `text`."""
        tag = next((each for each in _START_TAGS if text.startswith(each)), "")
        body = text[len(tag) :]
        if tag == _OPEN and (head := _FUNCTION.match(body)):
            match = self._parse_function(head[1], body, head.end())
        elif tag == _MISTRAL and (head := _MISTRAL_NAME.match(body)):
            json_value = _read_json(body, head.end())
            first = _partial_call(head, body, json_value)
            calls = [replace(first, done=True)] if isinstance(json_value.value, dict) else []
            match = _Match(calls, json_value.end, json_value.needs_more, first)
        else:
            match = self._parse_json(tag, body)
        if not match.calls:
            return match._replace(end=len(tag))
        rest = body[match.end :].lstrip() if tag == _OPEN else "no end tag"
        if rest.startswith(_CLOSE):
            return match._replace(end=len(text) - len(rest) + len(_CLOSE))
        return match._replace(end=len(tag) + match.end, needs_more=_CLOSE.startswith(rest))

    def _parse_json(self, tag: str, body: str) -> _Match:
        """A JSON object or a list of them; without a tag, only calls of known tools count."""
        json_value, first = _read_json(body, 0), None
        if (head := _JSON_HEAD.match(body)) and (tag or self._is_forced):
            first = _partial_call(head, body, _read_json(body, head.end()))
        value = json_value.value
        values = value if isinstance(value, list) else [value]
        calls = [call for each in values if (call := _call_of(each))]
        is_bare = not tag and _BARE.match(body) is not None
        is_allowed = tag or (is_bare and all(call.name in self._tools for call in calls))
        if calls and len(calls) == len(values) and is_allowed:
            calls[0] = replace(first, done=True) if first else calls[0]
            return _Match(calls, json_value.end, False, first)
        needs_more = (json_value.needs_more and (tag or is_bare)) or _may_become_call(tag, body)
        return _Match([], 0, bool(needs_more), first)

    def _parse_function(self, name: str, body: str, start: int) -> _Match:
        """Qwen3-Coder's format; values are JSON, except where the schema says string."""
        properties, parts = self._tools.get(name, {}).get("properties", {}), list[str]()
        while found := _PARAMETER.match(body, start):
            key, value = found[1], found[2]
            value = value if _is_string(properties, key) else _json_or_text(value)
            parts.append(f"{_dumps(key)}: {_dumps(value)}")
            start = found.end()
        if end := _FUNCTION_END.match(body, start):
            call = ToolCall(name, f"{{{', '.join(parts)}}}")
            return _Match([call], end.end(), False, replace(call, done=False))
        cut = _OPEN_PARAMETER.match(body, start)
        if cut and _is_string(properties, cut[1]):
            value = _dumps(_without_partial_end(cut[2])).removesuffix('"')
            parts.append(f"{_dumps(cut[1])}: {value}")
        first = ToolCall(name, f"{{{', '.join(parts)}", done=False)
        needs_more = cut is not None or _may_start_tag(body[start:], ("<parameter=", "</function>"))
        return _Match([], 0, needs_more, first)


class _JsonValue(NamedTuple):
    """The result of reading JSON at some position."""

    value: Any  # None if there is no valid JSON
    end: int  # of the value; 0 if there is none
    stable_end: int  # up to here, more text does not change the value
    needs_more: bool = False  # whether more text may make it valid


def _partial_call(head: re.Match[str], body: str, arguments: _JsonValue) -> ToolCall:
    """The stable part of a call whose arguments begin at the end of `head`."""
    return ToolCall(head[1], body[head.end() : arguments.stable_end], done=False)


def _read_json(text: str, start: int) -> _JsonValue:
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        value, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        is_string = error.msg.startswith("Unterminated string")
        needs_more = is_string or _CUT_JSON.fullmatch(text, error.pos) is not None
        return _JsonValue(None, 0, len(text) if is_string else error.pos, needs_more)
    except (ValueError, RecursionError):
        return _JsonValue(None, 0, start)
    return _JsonValue(value, end, end)


def _may_start_tag(text: str, tags: Sequence[str]) -> bool:
    """Whether `text`, after white space, may be the beginning of one of the tags."""
    text = text.lstrip()
    return any(tag.startswith(text) or (text.startswith(tag) and ">" not in text) for tag in tags)


def _may_become_call(tag: str, body: str) -> bool:
    """Whether text that is no call may become one: it may be the start of a tag or a name."""
    if not tag:
        return any(each.startswith(body) for each in _START_TAGS)
    if tag == _MISTRAL:
        return re.fullmatch(r"\s*[\w.-]+\s*(\[\w*\]\w*)*(\[\w*)?\s*", body) is not None
    return tag == _OPEN and _may_start_tag(body, ["<function="])


def _without_partial_end(value: str) -> str:
    """The value without a trailing part of the tag that ends its parameter."""
    ends = [end[:k] for end in ("\n</parameter>", "</parameter>") for k in range(len(end), 0, -1)]
    return value.removesuffix(next((end for end in ends if value.endswith(end)), ""))


def _call_of(value: Any) -> ToolCall | None:
    """The call that a JSON value describes; None if it is no call."""
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
    return ToolCall(name, _dumps(arguments))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_or_text(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        return text


def _is_string(properties: Any, name: str) -> bool:
    schema = properties.get(name) if isinstance(properties, dict) else None
    return isinstance(schema, dict) and schema.get("type") == "string"
