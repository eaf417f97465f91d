"""The keyword `pattern` as GBNF: JavaScript's regular expressions, with these exceptions.

Lookaround, backreferences and word boundaries are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dspark_gguf.engine.schema.rules import Ranges, complement, unescaped_class

#: llama.cpp takes a larger maximum of repetitions for no maximum at all.
MAX_REPEATS = 2000
_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [
    (9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
]  # fmt: skip
_LINE_ENDS: Ranges = [(10, 10), (13, 13), (0x2028, 0x2029)]
_CLASS_ESCAPES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CHARACTER_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
#: Code points with a short escape in JSON -> what follows the backslash.
_JSON_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 0x22: '"', 0x5C: "\\"}
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(,?)(\d*)\}")
_HEXADECIMAL = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")


def pattern_rule(pattern: str, add_rule: Callable[[str], str]) -> str:
    """GBNF of what may stand between the quotes of a JSON string that matches `pattern`.

    Args:
        pattern: a regular expression. Without `^` or `$`, it may match a part of the string.
        add_rule: adds a rule to the grammar and returns its name.

    Raises:
        ValueError: a grammar cannot express it.

    """
    parser = _Parser(pattern, add_rule)
    found = parser.alternatives(is_top_level=True)
    if parser.next_character:
        raise parser.error("a parenthesis too many")
    return found


class _Parser:
    """Recursive descent over the pattern; each method returns the GBNF of what it has read."""

    def __init__(self, text: str, add_rule: Callable[[str], str]) -> None:
        self._text, self._at, self._add_rule = text, 0, add_rule

    @property
    def next_character(self) -> str:
        """Empty at the end."""
        return self._text[self._at : self._at + 1]

    def error(self, what: str) -> ValueError:
        return ValueError(f"a grammar cannot express the pattern {self._text}: {what}")

    def alternatives(self, is_top_level: bool = False) -> str:
        found = [self._sequence(is_top_level)]
        while self._skip("|"):
            found.append(self._sequence(is_top_level))
        return " | ".join(found)

    def _skip(self, word: str) -> bool:
        """Whether `word` comes next; then it is skipped."""
        is_next = self._text.startswith(word, self._at)
        self._at += len(word) * is_next
        return is_next

    def _sequence(self, is_top_level: bool) -> str:
        """Up to a bar or the end. Outside groups, any text may stand where there is no anchor."""
        anything = ["char*"] if is_top_level else []
        parts = [] if is_top_level and self._skip("^") else [*anything]
        while self.next_character not in ("", "|", ")", "$"):
            parts.append(self._quantified())
        has_end = is_top_level and self._skip("$")
        if self.next_character not in ("", "|", ")"):
            raise self.error("a $ in this place")
        return " ".join(parts + ([] if has_end else anything)) or '""'

    def _quantified(self) -> str:
        """An atom with its quantifier, if it has one."""
        atom = self._atom()
        quantifier = _QUANTIFIER.match(self._text, self._at)
        if quantifier is None:
            return atom
        self._at = quantifier.end()
        self._skip("?")  # lazy and greedy quantifiers match the same texts
        if quantifier[1] is None:
            return f"{self._add_rule(atom)}{quantifier[0]}"
        least, most = int(quantifier[1]), int(quantifier[3]) if quantifier[3] else None
        if quantifier[2] == "":
            most = least
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self.error(f"{quantifier[0]} (at most {MAX_REPEATS} repetitions)")
        return f"{self._add_rule(atom)}{{{least},{'' if most is None else most}}}"

    def _atom(self) -> str:
        """A group, a class, a character or an escape."""
        if self._skip("("):
            if not self._skip("?:") and self.next_character == "?":
                raise self.error("a group with (?")
            inner = self.alternatives()
            if not self._skip(")"):
                raise self.error("a parenthesis that is not closed")
            return f"({inner})"
        if self.next_character in "^*+?{":
            raise self.error(f"{self.next_character} in this place")
        return self._in_json(self._class() if self._skip("[") else self._character())

    def _character(self, in_class: bool = False) -> Ranges:
        """The code points that a single character or escape stands for."""
        char = self.next_character
        self._at += 1
        if char == "." and not in_class:
            return complement(_LINE_ENDS)
        if char != "\\":
            return [(ord(char), ord(char))]
        hexadecimal = _HEXADECIMAL.match(self._text, self._at)
        if hexadecimal is not None:
            self._at = hexadecimal.end()
            code = int(hexadecimal[1] or hexadecimal[2], 16)
            return [(code, code)]
        char = self.next_character
        self._at += 1
        if char.lower() in _CLASS_ESCAPES:
            escaped = _CLASS_ESCAPES[char.lower()]
            return escaped if char.islower() else complement(escaped)
        plain = _CHARACTER_ESCAPES.get(char, char)
        if not char or (plain == char and char.isalnum()):
            raise self.error(f"\\{char}")
        return [(ord(plain), ord(plain))]

    def _class(self) -> Ranges:
        """The code points of a class, behind its opening bracket."""
        is_negated = self._skip("^")
        found: Ranges = []
        while not self._skip("]"):
            if not self.next_character:
                raise self.error("a bracket that is not closed")
            first = self._character(in_class=True)
            found += first
            after = self._text[self._at + 1 : self._at + 2]
            if self.next_character == "-" and after not in ("", "]"):
                self._at += 1
                last = self._character(in_class=True)
                low, high = first[0][0], last[0][0]
                if first != [(low, low)] or last != [(high, high)] or high < low:
                    raise self.error("a range that does not ascend from one character to another")
                found.append((low, high))
        return complement(found) if is_negated else found

    def _in_json(self, ranges: Ranges) -> str:
        """GBNF of one of these code points as a JSON string spells it."""
        unescaped = unescaped_class(complement(ranges))
        escapes = [
            f"\\x{ord(letter):02X}"
            for code, letter in _JSON_ESCAPES.items()
            if any(low <= code <= high for low, high in ranges)
        ]
        found = [unescaped] if unescaped else []
        found += [f'"\\\\" [{"".join(escapes)}]'] if escapes else []
        if not found:
            raise self.error("a character that answers cannot contain")
        return unescaped if found == [unescaped] else f"({' | '.join(found)})"
