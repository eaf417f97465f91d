"""What the grammars of JSON schemas share: rules with names, literals, repetitions, keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

_MAX_NAMED = 3000  # characters of names that others differ from: each becomes a group
COMMA = ' "," space '
_CHAR = re.compile(r"\\u....|\\.|.", re.DOTALL)


#: Spans of code points, both ends included.
Chars = list[tuple[int, int]]
#: What does not stand for itself in JSON, and what cannot stand there alone.
_NOT_PLAIN: Chars = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]


def others(chars: Chars) -> Chars:
    """All other code points, sorted."""
    found, start = [], 0
    for low, high in [*sorted(chars), (0x110000, 0x110000)]:
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return found


def plain_class(without: Chars) -> str:
    """GBNF of a character that stands for itself in JSON, but none of these; nothing if none is.

    Not the class of all but some: in that, llama.cpp takes bytes that are no characters.
    """
    found = others([*_NOT_PLAIN, *without])
    return f"[{''.join(f'{_point(a)}-{_point(b)}' for a, b in found)}]" if found else ""


def _point(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"


_LEAP = '([0-9]{2} ("0" [48] | [2468] [048] | [13579] [26]) | ([02468] [048] | [13579] [26]) "00")'
_DAY = '"0" [1-9] | [12] [0-9]'
#: Rules that schemas share. What `char` spells is always one code point.
SHARED = {
    "space": '" "?',
    "boolean": '("true" | "false") space',
    "null": '"null" space',
    "whole": '"0" | [1-9] [0-9]{0,15}',
    "integer": '"-"? whole space',
    "number": '"-"? whole ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})? space',
    "hex": "[0-9a-fA-F]",
    "plain": plain_class([]),
    "code": '"u" ([0-9a-cA-Ce-fE-F] hex | [dD] [0-7]) hex hex',
    "char": r'plain | "\\" (["\\/bfnrt] | code)',
    "key-char": r'plain | "\\" ["\\bfnrt]',
    "string": r'"\"" char* "\"" space',
    "value": "object | array | string | number | boolean | null",
    "member": 'string ":" space value',
    "object": '"{" space (member ("," space member)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "month": f'("0" [13578] | "1" [02]) "-" ({_DAY} | "3" [01]) | ("0" [469] | "11") "-" '
    f'({_DAY} | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "date": f'[0-9]{{4}} "-" month | {_LEAP} "-02-29"',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}


def as_json(value: Any) -> str:
    """The text of a value; half a character is escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def literal(text: str) -> str:
    """GBNF of a text without control characters, as JSON has it."""
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def times(item: str, least: int, most: int | None) -> str:
    """An item some times; None: no bound."""
    return "" if most == 0 else f"{item}{{{least},{'' if most is None else most}}}"


def key_other_than(names: Iterable[str]) -> str:
    """A key that is none of these."""
    words = [tuple(_CHAR.findall(as_json(name)[1:-1])) for name in names]
    if sum(map(len, words)) > _MAX_NAMED:
        raise ValueError("a grammar cannot express additionalProperties beside so many names")
    return rf'"\"" {_other_than(words)} "\"" space' if words else "string"


def _other_than(words: list[tuple[str, ...]]) -> str:
    """Any text but these, each as characters of JSON: their beginnings and what leaves them."""
    after: dict[str, list[tuple[str, ...]]] = {}
    for word in words:
        if word and not word[0].startswith("\\u"):  # a key of these rules does not spell it so
            after.setdefault(word[0], []).append(word[1:])
    found = [f"{literal(char)} {_other_than(rest)}" for char, rest in after.items()]
    plain = [(ord(char), ord(char)) for char in after if len(char) == 1]
    found.append(f"{plain_class(plain)} key-char*")
    escapes = "".join(f"\\x{ord(char):02X}" for char in '"\\bfnrt' if "\\" + char not in after)
    found += [rf'"\\" [{escapes}] key-char*'] if escapes else []
    # Not with a question mark: llama.cpp repeats no group that holds more than 2000 others.
    found += [] if () in words else ['""']
    return f"({' | '.join(found)})"
