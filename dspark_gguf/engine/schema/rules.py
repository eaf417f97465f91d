"""What all grammars of JSON schemas use: common rules, literals, repetition, property names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

#: Maximum characters of the names that another key must differ from: each becomes a group.
_MAX_EXCLUDED = 3000
COMMA = ' "," space '
_CHARACTER = re.compile(r"\\u....|\\.|.", re.DOTALL)

#: Ranges of code points, both ends included.
Ranges = list[tuple[int, int]]
#: Never unescaped in a string: control characters, the quote, the backslash, lone surrogates.
_ESCAPED: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]


def complement(ranges: Ranges) -> Ranges:
    """All other code points, in order."""
    found, start = [], 0
    for low, high in [*sorted(ranges), (0x110000, 0x110000)]:
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return found


def unescaped_class(excluded: Ranges) -> str:
    """A GBNF class of the characters that JSON need not escape, without the `excluded` ones.

    It is empty if no character is left. It is never a negated class (`[^...]`): there, llama.cpp
    also accepts bytes that are not characters.
    """
    found = complement([*_ESCAPED, *excluded])
    return f"[{''.join(f'{_point(a)}-{_point(b)}' for a, b in found)}]" if found else ""


def _point(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"


_LEAP_YEAR = (
    '([0-9]{2} ("0" [48] | [2468] [048] | [13579] [26]) | ([02468] [048] | [13579] [26]) "00")'
)
_DAY = '"0" [1-9] | [12] [0-9]'
#: The rules that schemas share, by name. `char` always matches exactly one code point.
COMMON_RULES = {
    "space": '" "?',
    "boolean": '("true" | "false") space',
    "null": '"null" space',
    "natural": '"0" | [1-9] [0-9]{0,15}',
    "integer": '"-"? natural space',
    "number": '"-"? natural ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})? space',
    "hex": "[0-9a-fA-F]",
    "unescaped": unescaped_class([]),
    "code-point": '"u" ([0-9a-cA-Ce-fE-F] hex | [dD] [0-7]) hex hex',
    "char": r'unescaped | "\\" (["\\/bfnrt] | code-point)',
    "key-char": r'unescaped | "\\" ["\\bfnrt]',
    "string": r'"\"" char* "\"" space',
    "value": "object | array | string | number | boolean | null",
    "member": 'string ":" space value',
    "object": '"{" space (member ("," space member)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "month-day": f'("0" [13578] | "1" [02]) "-" ({_DAY} | "3" [01]) | ("0" [469] | "11") "-" '
    f'({_DAY} | "30") | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "date": f'[0-9]{{4}} "-" month-day | {_LEAP_YEAR} "-02-29"',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}


def as_json(value: Any) -> str:
    """The JSON of `value`, with lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def literal(text: str) -> str:
    """GBNF that matches `text`, which must not contain control characters; JSON contains none."""
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def repeat(item: str, least: int, most: int | None) -> str:
    """GBNF of `least` to `most` repetitions of `item`; None: no maximum."""
    return "" if most == 0 else f"{item}{{{least},{'' if most is None else most}}}"


def key_except(names: Iterable[str]) -> str:
    """GBNF of a property name that is none of `names`; a `ValueError` if they are too long."""
    words = [tuple(_CHARACTER.findall(as_json(name)[1:-1])) for name in names]
    if sum(map(len, words)) > _MAX_EXCLUDED:
        raise ValueError("a grammar cannot express additionalProperties with so many names")
    return rf'"\"" {_text_except(words)} "\"" space' if words else "string"


def _text_except(words: list[tuple[str, ...]]) -> str:
    """GBNF of any text but these, each given as JSON characters: a tree of their prefixes."""
    after: dict[str, list[tuple[str, ...]]] = {}
    for word in words:
        if word and not word[0].startswith("\\u"):  # `key-char` has no escapes of this form
            after.setdefault(word[0], []).append(word[1:])
    found = [f"{literal(char)} {_text_except(rest)}" for char, rest in after.items()]
    unescaped = [(ord(char), ord(char)) for char in after if len(char) == 1]
    found.append(f"{unescaped_class(unescaped)} key-char*")
    escapes = "".join(f"\\x{ord(char):02X}" for char in '"\\bfnrt' if "\\" + char not in after)
    found += [rf'"\\" [{escapes}] key-char*'] if escapes else []
    # An empty alternative, not `?`: llama.cpp repeats no group that contains more than 2000 others.
    found += [] if () in words else ['""']
    return f"({' | '.join(found)})"
