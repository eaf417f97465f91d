"""Tool calls, found in what a model says, piece by piece.

Families: Hermes and Qwen (``<tool_call>{...}</tool_call>``, or ``<function=...>`` inside), Mistral
(``[TOOL_CALLS]``), Llama 3 (a bare object, perhaps after ``<|python_tag|>``). What cannot be read
as a call is text, and never lost.

The arguments of a call stream as soon as the tag, or the grammar of a required call, makes it one,
its name is that of a tool, and its arguments have begun. If it then breaks off or is no JSON after
all, it is never `done`, and its whole text follows as text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

_OPEN, _CLOSE, _MISTRAL, _PYTHON = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_OPENERS = (_OPEN, _MISTRAL, _PYTHON)
TAGS = (*_OPENERS, _CLOSE, "[CALL_ID]", "[ARGS]")  # all that may be a token of its own
#: Qwen3-Coder's way to write a call.
_FUNCTION, _END = re.compile(r"\s*<function=([^>\s]+)>"), re.compile(r"\s*</function>\s*")
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_VALUE = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*)", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
#: An object, or the first of a list, up to its arguments.
_HEAD = re.compile(
    r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
#: What a call without a tag may begin with.
_BARE = re.compile(r'[\[{\s]*(\Z|"\w*\Z|"(name|id|type|function|arguments|parameters)")', re.ASCII)
_TAGS = ("<parameter=", "</function>")
_BETWEEN = re.compile(r"[\s;,]*")
#: Where JSON may only seem wrong, because it ends in the middle of a word, number or escape.
_BEGUN = re.compile(r"\s*(-|t(ru?)?|f(a(ls?)?)?|n(ul?)?|\.|[eE][+-]?|\\?u[0-9a-fA-F]{0,4})?")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


@dataclass(frozen=True)
class Call:
    """A call, or a part of one: parts with the same `id` follow each other, and the last is `done`.

    `arguments` is JSON text. Mistral's templates want ids of nine characters.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9], compare=False)
    done: bool = True

    def plus(self, part: Call) -> Call:
        """With the part that follows."""
        return replace(self, arguments=self.arguments + part.arguments, done=part.done)


class _Found(NamedTuple):
    """What stands where a call may begin: calls and where they end, or whether it `waits` for more.

    `first` is the first call as far as it is certain already.
    """

    calls: list[Call]
    end: int
    waits: bool = False
    first: Call | None = None


class CallReader:
    """Tells calls from text in a stream.

    Args:
        tools: name -> schema of the parameters.
        many: off: calls after the first are dropped.
        is_sure: whether a grammar holds the model to a call.
    """

    def __init__(
        self, tools: Mapping[str, Mapping[str, Any]], many: bool = True, is_sure: bool = False
    ) -> None:
        self._tools, self._many, self._is_sure = tools, many, is_sure
        self._held = ""
        self._said = self._called = False
        self._fresh = True  # nothing but white space since the start or the last call
        self._part: Call | None = None  # as far as it was handed out

    def feed(self, text: str, ends: bool = False) -> Iterator[str | Call]:
        """Text and calls, in order. What may belong to a call is held back until the text `ends`.

        Text that is joined again, with the calls that are done taken out, is what was said.
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
            is_call = self._many or not self._called
            found = self._found(self._held[place:])
            if found.waits and not ends:
                if found.first and found.first.name in self._tools and is_call:
                    yield from self._grown(found.first)
                return
            if not found.calls:
                self._part = None
                yield from self._text(place + max(found.end, 1))
                continue
            self._held = self._held[place + found.end :]
            self._called = self._fresh = True
            if is_call:
                yield from self._grown(found.calls[0])
                yield from found.calls[1:] if self._many else ()
            self._part = None

    def _grown(self, call: Call) -> Iterator[Call]:
        """The part of a call that was not handed out yet."""
        sent = self._part or replace(call, arguments="", done=False)
        fresh = call.arguments[len(sent.arguments) :]
        if fresh or call.done or self._part is None:
            yield replace(call, arguments=fresh, id=sent.id)
            self._part = replace(call, id=sent.id)

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

    def _found(self, text: str) -> _Found:
        """What `text` begins with; without calls, the end is that of what cannot be one."""
        opener = next((each for each in _OPENERS if text.startswith(each)), "")
        body, place = text[len(opener) :], len(opener)
        if opener == _OPEN and (head := _FUNCTION.match(body)):
            found = self._function(head[1], body, head.end())
        elif opener == _MISTRAL and (head := _NAMED.match(body)):
            read = _read(body, head.end())
            first = self._first(head, body, read)
            calls = [replace(first, done=True)] if isinstance(read.value, dict) else []
            found = _Found(calls, read.end, read.waits, first)
        else:
            found = self._values(opener, body)
        if not found.calls:
            return found._replace(end=place)
        rest = body[found.end :].lstrip() if opener == _OPEN else "no tag"
        if rest.startswith(_CLOSE):
            return found._replace(end=len(text) - len(rest) + len(_CLOSE))
        return found._replace(end=place + found.end, waits=_CLOSE.startswith(rest))

    def _first(self, head: re.Match[str], body: str, read: _Read) -> Call:
        """A call whose arguments begin behind its `head`, as far as they are certain."""
        return Call(head[1], body[head.end() : read.certain], done=False)

    def _values(self, opener: str, body: str) -> _Found:
        """Calls written as an object or a list of them; without a tag, of known tools only."""
        read, first = _read(body, 0), None
        if (head := _HEAD.match(body)) and (opener or self._is_sure):
            first = self._first(head, body, _read(body, head.end()))
        values = read.value if isinstance(read.value, list) else [read.value]
        calls = [call for each in values if (call := _call(each))]
        is_bare = not opener and _BARE.match(body) is not None
        may_be = opener or (is_bare and all(call.name in self._tools for call in calls))
        if calls and len(calls) == len(values) and may_be:
            calls[0] = replace(first, done=True) if first else calls[0]
            return _Found(calls, read.end, False, first)
        waits = (read.waits and (opener or is_bare)) or _may_be_named(opener, body)
        return _Found([], 0, bool(waits), first)

    def _function(self, name: str, body: str, place: int) -> _Found:
        """Qwen3-Coder's way; a value is JSON unless the tool wants text there."""
        properties, parts = self._tools.get(name, {}).get("properties", {}), list[str]()
        while found := _PARAMETER.match(body, place):
            key, value = found[1], found[2]
            value = value if _is_text(properties, key) else _json_or_text(value)
            parts.append(f"{_dumped(key)}: {_dumped(value)}")
            place = found.end()
        if end := _END.match(body, place):
            call = Call(name, f"{{{', '.join(parts)}}}")
            return _Found([call], end.end(), False, replace(call, done=False))
        opened = _VALUE.match(body, place)
        if opened and _is_text(properties, opened[1]):
            begun = _dumped(_without_end(opened[2]))[:-1]
            parts.append(f"{_dumped(opened[1])}: {begun}")
        first = Call(name, f"{{{', '.join(parts)}", done=False)
        return _Found([], 0, opened is not None or _may_be(body[place:], _TAGS), first)


class _Read(NamedTuple):
    """A JSON value and its end; an end of 0: there is none, or it `waits` for more text.

    Up to `certain`, more text changes nothing.
    """

    value: Any
    end: int
    certain: int
    waits: bool = False


def _read(text: str, start: int) -> _Read:
    start += len(text[start:]) - len(text[start:].lstrip())
    try:
        value, end = _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        is_string = error.msg.startswith("Unterminated string")
        waits = is_string or _BEGUN.fullmatch(text, error.pos) is not None
        return _Read(None, 0, len(text) if is_string else error.pos, waits)
    except (ValueError, RecursionError):
        return _Read(None, 0, start)
    return _Read(value, end, end)


def _may_be(text: str, tags: Sequence[str]) -> bool:
    """Whether one of the tags, or white space before it, may begin here."""
    text = text.lstrip()
    return any(tag.startswith(text) or (text.startswith(tag) and ">" not in text) for tag in tags)


def _may_be_named(opener: str, body: str) -> bool:
    """Whether a tag or a name, for which more text is needed, may begin here."""
    if not opener:
        return any(each.startswith(body) for each in _OPENERS)
    if opener == _MISTRAL:
        return re.fullmatch(r"\s*[\w.-]+\s*(\[\w*\]?\w*)*\s*", body) is not None
    return opener == _OPEN and _may_be(body, ["<function="])


def _without_end(value: str) -> str:
    """A value without what may be the end of its parameter."""
    ends = [end[:k] for end in ("\n</parameter>", "</parameter>") for k in range(len(end), 0, -1)]
    found = next((end for end in ends if value.endswith(end)), "")
    return value.removesuffix(found)


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
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _is_text(properties: Any, name: str) -> bool:
    schema = properties.get(name) if isinstance(properties, dict) else None
    return isinstance(schema, dict) and schema.get("type") == "string"
