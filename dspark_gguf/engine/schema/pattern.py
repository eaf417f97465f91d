"""Regular expressions of JSON schemas as GBNF: JavaScript's, without looking around or back."""

from __future__ import annotations

import re
from collections.abc import Callable

from dspark_gguf.engine.schema.shared import Chars, others, plain_class

MAX_REPEATS = 2000  # llama.cpp takes more for no bound at all
_DIGIT: Chars = [(0x30, 0x39)]
_WORD: Chars = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Chars = [
    (9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
]  # fmt: skip
_LINE_ENDS: Chars = [(10, 10), (13, 13), (0x2028, 0x2029)]
_KINDS = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_IN_JSON = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}
_TIMES = re.compile(r"[*+?]|\{(\d+)(,?)(\d*)\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")


def pattern_rule(pattern: str, rule: Callable[[str], str]) -> str:
    """GBNF of the text between a JSON string's quotes; `rule` gives a name to a part of it.

    A ValueError says that no grammar can express it.
    """
    reader = _Reader(pattern, rule)
    found = reader.alternatives(outside=True)
    if reader.here:
        raise reader.fault("a parenthesis too many")
    return found


class _Reader:
    def __init__(self, text: str, rule: Callable[[str], str]) -> None:
        self._text, self._at, self._rule = text, 0, rule

    @property
    def here(self) -> str:
        """The next character; nothing at the end."""
        return self._text[self._at : self._at + 1]

    def fault(self, what: str) -> ValueError:
        return ValueError(f"a grammar cannot express the pattern {self._text}: {what}")

    def alternatives(self, outside: bool = False) -> str:
        found = [self._sequence(outside)]
        while self._took("|"):
            found.append(self._sequence(outside))
        return " | ".join(found)

    def _took(self, word: str) -> bool:
        took = self._text.startswith(word, self._at)
        self._at += len(word) * took
        return took

    def _sequence(self, outside: bool) -> str:
        """Until a bar or the end. Where no anchor stands `outside` of groups, anything may."""
        anything = ["char*"] if outside else []
        parts = [] if outside and self._took("^") else [*anything]
        while self.here not in ("", "|", ")", "$"):
            parts.append(self._repeated())
        ends = outside and self._took("$")
        if self.here not in ("", "|", ")"):
            raise self.fault("a $ in this place")
        return " ".join(parts + ([] if ends else anything)) or '""'

    def _repeated(self) -> str:
        part = self._part()
        times = _TIMES.match(self._text, self._at)
        if times is None:
            return part
        self._at = times.end()
        self._took("?")  # few or many first: the same texts
        if times[1] is None:
            return f"{self._rule(part)}{times[0]}"
        least, most = int(times[1]), int(times[3]) if times[3] else None
        if times[2] == "":
            most = least
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self.fault(f"{times[0]} (at most {MAX_REPEATS} repetitions)")
        return f"{self._rule(part)}{{{least},{'' if most is None else most}}}"

    def _part(self) -> str:
        if self._took("("):
            if not self._took("?:") and self.here == "?":
                raise self.fault("a group with (?")
            inner = self.alternatives()
            if not self._took(")"):
                raise self.fault("a parenthesis that stays open")
            return f"({inner})"
        if self.here in "^*+?{":
            raise self.fault(f"{self.here} in this place")
        return self._as_json(self._class() if self._took("[") else self._one())

    def _one(self, inside: bool = False) -> Chars:
        """A character or an escape for some."""
        char = self.here
        self._at += 1
        if char == "." and not inside:
            return others(_LINE_ENDS)
        if char != "\\":
            return [(ord(char), ord(char))]
        hexadecimal = _HEX.match(self._text, self._at)
        if hexadecimal is not None:
            self._at = hexadecimal.end()
            code = int(hexadecimal[1] or hexadecimal[2], 16)
            return [(code, code)]
        char = self.here
        self._at += 1
        if char.lower() in _KINDS:
            kind = _KINDS[char.lower()]
            return kind if char.islower() else others(kind)
        plain = _ESCAPED.get(char, char)
        if not char or (plain == char and char.isalnum()):
            raise self.fault(f"\\{char}")
        return [(ord(plain), ord(plain))]

    def _class(self) -> Chars:
        negated = self._took("^")
        found: Chars = []
        while not self._took("]"):
            if not self.here:
                raise self.fault("a bracket that stays open")
            first = self._one(inside=True)
            found += first
            if self.here == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                last = self._one(inside=True)
                low, high = first[0][0], last[0][0]
                if first != [(low, low)] or last != [(high, high)] or high < low:
                    raise self.fault("a range of this kind")
                found.append((low, high))
        return others(found) if negated else found

    def _as_json(self, chars: Chars) -> str:
        """One of these as JSON has it in a string."""
        plain = plain_class(others(chars))
        escaped = [
            f"\\x{ord(letter):02X}"
            for code, letter in _IN_JSON.items()
            if any(low <= code <= high for low, high in chars)
        ]
        found = [plain] if plain else []
        found += [f'"\\\\" [{"".join(escaped)}]'] if escaped else []
        if not found:
            raise self.fault("a character that no answer holds")
        return found[0] if len(found) == 1 and plain else f"({' | '.join(found)})"
