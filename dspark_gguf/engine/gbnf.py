"""Mistakes in a grammar (GBNF) that llama.cpp does not survive, found before it reads the text.

Most mistakes it answers with NULL. It takes three for a grammar, and then memory or the stack ends:
a repetition that counts backwards, a rule that begins with itself behind one that may be empty
(white space, most often), and nesting without measure. What cannot be read here is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

#: Parentheses, or rules that begin with each other, inside each other: llama.cpp reads them by
#: recursion, and a thread's stack is half a MiB on some systems.
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
    """A part of an alternative: a rule's name, or None for characters."""

    rule: str | None
    may_be_empty: bool = False
    repeats: bool = False


#: Name -> alternatives; a group is a rule without a name of its own.
_Rules = dict[str, list[list[_Item]]]


@lru_cache(maxsize=8)
def fault(text: str, root: str) -> str | None:
    """What is wrong, as a noun phrase; None where nothing is known to be."""
    if not text:
        return None  # llama.cpp takes it for no grammar at all
    try:
        rules = _read(text)
    except ValueError as found:
        return str(found)
    if root not in rules:
        return f"none with the rule {root}"
    return _endless(rules)


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
            raise ValueError(f"parentheses more than {_DEEPEST} deep")
    return rules


def _repeat(item: _Item, times: str) -> None:
    counts = _TIMES.fullmatch(times)
    least, most = int(times == "+"), 1 if times == "?" else 2
    if counts is not None:
        least = int(counts[1])
        most = int(counts[3]) if counts[3] else least + 1 if counts[2] else least
    if most < least:
        raise ValueError(f"a repetition {times}, which ends before it begins")
    item.may_be_empty |= least == 0
    item.repeats |= most > 1


def _endless(rules: _Rules) -> str | None:
    """What llama.cpp would not come back from: it expands the first parts of a rule on a stack."""
    begins = {name: _beginnings(alternatives) for name, alternatives in _with_empty(rules).items()}
    sorter = TopologicalSorter(begins)
    try:
        sorter.prepare()
    except CycleError:
        for name, first in begins.items():
            for other, is_last in first.items():
                # A last part replaces its rule on the stack: that one does not grow.
                if not is_last and name in _reached(begins, other):
                    return f"the rule {name.split('(')[0]}, which may begin with itself"
        return None
    depth = 0
    while sorter.is_active():
        sorter.done(*sorter.get_ready())
        depth += 1
    return f"rules more than {_DEEPEST} deep" if depth > _DEEPEST else None


def _with_empty(rules: _Rules) -> _Rules:
    """The same, with every item marked that may be empty because its rule may."""
    empty: set[str] = set()
    for _ in range(_DEEPEST):
        more = {
            name
            for name, alternatives in rules.items()
            if name not in empty
            and any(all(item.may_be_empty for item in items) for items in alternatives)
        }
        if not more:
            break
        empty |= more
        for alternatives in rules.values():
            for items in alternatives:
                for item in items:
                    item.may_be_empty |= item.rule in more
    return rules


def _beginnings(alternatives: list[list[_Item]]) -> dict[str, bool]:
    """Rules that it may begin with -> whether nothing comes behind them."""
    found: dict[str, bool] = {}
    for items in alternatives:
        for item, is_last in _first(items):
            if item.rule is not None:
                found[item.rule] = found.get(item.rule, True) and is_last
    return found


def _first(items: list[_Item]) -> Iterator[tuple[_Item, bool]]:
    for k, item in enumerate(items):
        yield item, k + 1 == len(items) and not item.repeats
        if not item.may_be_empty:
            return


def _reached(begins: dict[str, dict[str, bool]], start: str) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        more = begins.get(waiting.pop(), {}).keys() - found
        found |= more
        waiting += more
    return found
