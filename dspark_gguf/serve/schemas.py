"""Grammars that requests ask for: bounded, and begun after the thinking."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspark_gguf.chat.think import CLOSE, OPEN
from dspark_gguf.config import Sampling
from dspark_gguf.engine.grammar import grammar_text
from dspark_gguf.errors import UsageError
from dspark_gguf.serve.errors import invalid

#: Most characters of a schema or grammar, and most parts that a grammar may become.
MAX_CHARACTERS, _MAX_PARTS = 64 * 1024, 20_000
_COUNTS = (("minItems", "maxItems"), ("minLength", "maxLength"))
_TIMES = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_ROOT = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|(?<![A-Za-z0-9-])root(?![A-Za-z0-9-])', re.DOTALL
)


def schema_grammar(schema: Any) -> str:
    """GBNF of a JSON schema; a `RequestError` if there is none."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError):
        raise invalid("the JSON schema is not JSON, or nested too deeply") from None
    if not isinstance(schema, dict):
        raise invalid("the JSON schema is not an object")
    if len(text) > MAX_CHARACTERS:
        raise invalid(f"the JSON schema has {len(text)} characters: at most {MAX_CHARACTERS}")
    if _parts(schema) > _MAX_PARTS:
        raise invalid("the JSON schema repeats or holds too much: lower its maxItems or maxLength")
    try:
        return grammar_text(Sampling(json_schema=text)) or ""
    except UsageError as error:
        raise invalid(str(error)) from None


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call of one of the `tools`."""
    places = [f"#/$defs/{k}" for k in range(len(tools))]
    choices = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": {"$ref": place}},
            "required": ["name", "arguments"],
        }
        for tool, place in zip(tools, places, strict=True)
    ]
    parameters = {
        str(k): {"type": "object", **_moved(tool.get("parameters") or {}, place)}
        for k, (tool, place) in enumerate(zip(tools, places, strict=True))
    }
    return {"anyOf": choices, "$defs": parameters}


def _moved(node: Any, place: str, depth: int = 0) -> Any:
    """The same at another place of a larger schema: its references begin there."""
    _require_flat(depth)
    if isinstance(node, list):
        return [_moved(each, place, depth + 1) for each in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value, place, depth + 1) for key, value in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _require_flat(depth: int) -> None:
    if depth > 64:
        raise invalid("the JSON schema is nested too deeply")


def own_grammar(text: str) -> str:
    """A client's GBNF. Never the name of a file."""
    if "::=" not in text or len(text) > MAX_CHARACTERS:
        raise invalid(f"the grammar is not GBNF of at most {MAX_CHARACTERS} characters", "grammar")
    repeats = [int(n) for pair in _TIMES.findall(text) for n in pair if n.isdigit()]
    if sum(repeats) > _MAX_PARTS or max(repeats, default=0) > 2000:
        raise invalid("the grammar repeats too much", "grammar")
    return text


def after_thinking(grammar: str, inside: bool) -> str:
    """The same after a thought: one that has begun, or one that may."""
    thought = [f"thought-{k}" for k in range(len(CLOSE))]
    rules = [
        f"root ::= {'thought-0' if inside else 'opened? '} thought-space answer-root",
        f'opened ::= "{OPEN}" thought-0',
        "thought-space ::= [ \\n]*",
    ]
    for k, name in enumerate(thought):
        goal, after = CLOSE[k], f" {thought[k + 1]}" if k + 1 < len(CLOSE) else ""
        others = "" if goal == "<" else "<"
        again = f'"<" {thought[1]} | ' if others else ""
        rules.append(f'{name} ::= "{goal}"{after} | {again}[^{others}{goal}] thought-0')
    renamed = _ROOT.sub(lambda m: "answer-root" if m[0] == "root" else m[0], grammar)
    return "\n".join([*rules, renamed])


def _parts(node: Any, depth: int = 0) -> int:
    """How large a grammar becomes of it, about."""
    _require_flat(depth)
    if isinstance(node, list):
        return 1 + sum(_parts(each, depth + 1) for each in node)
    if not isinstance(node, dict):
        return 1
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise invalid("a $ref of the JSON schema leaves it: only # is read")
    pairs = [[node.get(key) for key in keys] for keys in _COUNTS]
    times = [max(n for n in [0, *pair] if isinstance(n, int)) for pair in pairs]
    for numbers in _TIMES.findall(str(node.get("pattern", ""))):
        times.append(max(int(n or 0) for n in numbers))
    most = 1
    for count in times:
        most *= max(1, min(abs(count), 10**9))
    return most * (1 + sum(_parts(each, depth + 1) for each in node.values()))
