"""Find mistakes in a grammar (GBNF) that would crash llama.cpp, before it reads the text.

llama.cpp returns NULL for most invalid grammars. But three kinds exhaust its memory or stack: a
repetition whose bounds are reversed, left recursion behind a rule that may be empty (often white
space), and very deep nesting. Everything else is left to llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

#: Maximum nesting of parentheses, or of rules that begin with each other: llama.cpp parses them
#: recursively, and a thread's stack is half a MiB on some systems.
_DEEPEST = 500

_TOKEN = re.compile(
    r"""\#[^\r\n]*
    | (?P<text> "(?:\\.|[^"\\])*" | \[(?:\\.|[^\]\\])*\] | !?<[^>]*> | \.)
    | (?P<rule> [A-Za-z0-9-]+ (?=[ \t]*::=))
    | (?P<name> [A-Za-z0-9-]+)
    | (?P<times> [*?+] | \{[^}]*\})
    | (?P<mark> [(|)])""",
    re.VERBOSE | re.DOTALL,
)
_TIMES = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")


@dataclass(slots=True)
class _Item:
    """An item of an alternative: the name of a rule, or None for characters."""

    rule: str | None
    may_be_empty: bool = False
    repeats: bool = False


#: Name -> alternatives; a group is a rule with a made-up name.
_Rules = dict[str, list[list[_Item]]]


@lru_cache(maxsize=8)
def fault(text: str, root: str) -> str | None:
    """What is wrong with a grammar, as a clause; None if no fault was found."""
    if not text:
        return None  # for llama.cpp that is no grammar
    try:
        rules = _read(text)
    except ValueError as found:
        return str(found)
    return _endless(rules) if root in rules else f"it has no rule {root}"


def _read(text: str) -> _Rules:
    rules: _Rules = {}
    around: list[list[list[_Item]]] = [[[]]]  # the rule at this place, and its open groups
    here = ""
    for token in _TOKEN.finditer(text):
        kind, word = token.lastgroup, token.group()
        items = around[-1][-1]
        if kind == "rule":
            rules[word] = [[]]
            around, here = [rules[word]], word
        elif kind == "name":
            items.append(_Item(word))
        elif kind == "text":
            items.append(_Item(None, may_be_empty=word in ('""', "[]")))
        elif kind == "times" and items:
            _repeat(items[-1], word)
        elif word == "|":
            around[-1].append([])
        elif word == "(":
            name = f"{here}({len(rules)}"
            rules[name] = [[]]
            items.append(_Item(name))
            around.append(rules[name])
        elif word == ")" and len(around) > 1:
            around.pop()
        if len(around) > _DEEPEST:
            raise ValueError(f"its parentheses are more than {_DEEPEST} deep")
    return rules


def _repeat(item: _Item, times: str) -> None:
    counts = _TIMES.fullmatch(times)
    least, most = int(times == "+"), 1 if times == "?" else 2
    if counts is not None:
        least = int(counts[1])
        most = int(counts[3]) if counts[3] else least + 1 if counts[2] else least
    if most < least:
        raise ValueError(f"its repetition {times} ends before it begins")
    item.may_be_empty |= least == 0
    item.repeats |= most > 1


def _endless(rules: _Rules) -> str | None:
    """Why llama.cpp would never finish: it expands the first items of a rule on a stack."""
    _mark_empty(rules)
    begins = {name: _beginnings(alternatives) for name, alternatives in rules.items()}
    sorter = TopologicalSorter(begins)
    try:
        sorter.prepare()
    except CycleError:
        for name, first in begins.items():
            for other, is_last in first.items():
                # The last item replaces its rule on the stack, which then does not grow.
                if not is_last and name in _reached(begins, other):
                    return f"its rule {name.split('(')[0]} may begin with itself"
        return None
    depth = 0
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        depth += 1
    return f"its rules are more than {_DEEPEST} deep" if depth > _DEEPEST else None


def _mark_empty(rules: _Rules) -> None:
    """Mark items whose rule may be empty."""
    every = [item for alternatives in rules.values() for items in alternatives for item in items]
    for _ in range(_DEEPEST):
        empty = {
            name
            for name, alternatives in rules.items()
            if any(all(item.may_be_empty for item in items) for items in alternatives)
        }
        new = [item for item in every if item.rule in empty and not item.may_be_empty]
        if not new:
            return
        for item in new:
            item.may_be_empty = True


def _beginnings(alternatives: list[list[_Item]]) -> dict[str, bool]:
    """Rules that these may begin with -> whether nothing follows them."""
    found: dict[str, bool] = {}
    for items in alternatives:
        for k, item in enumerate(items):
            is_last = k + 1 == len(items) and not item.repeats
            if item.rule is not None:
                found[item.rule] = found.get(item.rule, True) and is_last
            if not item.may_be_empty:
                break
    return found


def _reached(begins: dict[str, dict[str, bool]], start: str) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        more = begins.get(waiting.pop(), {}).keys() - found
        found |= more
        waiting += more
    return found
