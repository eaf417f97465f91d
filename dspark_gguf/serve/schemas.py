"""Grammars for requests, from a JSON schema, tools or GBNF; limited in size, after any thought."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dspark_gguf.chat.think import CLOSE, OPEN
from dspark_gguf.config import Sampling
from dspark_gguf.engine.grammar import grammar_text
from dspark_gguf.errors import UsageError
from dspark_gguf.serve.errors import invalid

#: Maximum characters of a schema or grammar, and maximum elements with repetitions expanded.
_MAX_CHARACTERS, _MAX_ELEMENTS = 64 * 1024, 20_000
#: Pairs of keys that limit the same number of repetitions.
_COUNTS = (("minItems", "maxItems"), ("minLength", "maxLength"))
_REPETITION = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
#: The rule name `root`. Literals and character classes match too, to skip the word inside them.
_ROOT = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|(?<![A-Za-z0-9-])root(?![A-Za-z0-9-])', re.DOTALL
)


def schema_grammar(schema: dict[str, Any]) -> str:
    """A JSON schema as GBNF; a `RequestError` if it is invalid, too large or not supported."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError):
        raise invalid("the JSON schema contains NaN or Infinity, or is nested too deeply") from None
    if len(text) > _MAX_CHARACTERS:
        raise invalid(f"the JSON schema is longer than {_MAX_CHARACTERS} characters")
    if _elements(schema) > _MAX_ELEMENTS:
        raise invalid("the JSON schema is too large: lower its maxItems or maxLength")
    try:
        return grammar_text(Sampling(json_schema=text)) or ""
    except UsageError as error:
        raise invalid(str(error)) from None


def call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of a call to one of the `tools`."""
    paths = [f"#/$defs/{k}" for k in range(len(tools))]
    choices = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": {"$ref": path}},
            "required": ["name", "arguments"],
        }
        for tool, path in zip(tools, paths, strict=True)
    ]
    parameters = {
        str(k): {"type": "object", **_with_root(tool.get("parameters") or {}, path)}
        for k, (tool, path) in enumerate(zip(tools, paths, strict=True))
    }
    return {"anyOf": choices, "$defs": parameters}


def _with_root(node: Any, path: str, depth: int = 0) -> Any:
    """The schema for use at `path` in a larger one: `path` is put before its references."""
    _require_depth(depth)
    if isinstance(node, list):
        return [_with_root(each, path, depth + 1) for each in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _with_root(value, path, depth + 1) for key, value in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        copy["$ref"] = path + reference[1:]
    return copy


def _require_depth(depth: int) -> None:
    if depth > 64:
        raise invalid("the JSON schema is nested too deeply")


def client_grammar(text: str) -> str:
    """A client's grammar, which must be GBNF itself and not the name of a file."""
    if "::=" not in text or len(text) > _MAX_CHARACTERS:
        raise invalid(f"grammar must be GBNF of at most {_MAX_CHARACTERS} characters", "grammar")
    repeats = _repetitions(text)
    if sum(repeats) > _MAX_ELEMENTS or max(repeats, default=0) > 2000:
        raise invalid("the grammar has too many repetitions", "grammar")
    return text


def after_thinking(grammar: str, inside: bool) -> str:
    """The grammar preceded by a thought: the rest of one if `inside` it, else an optional one."""
    # Rule thought-K matches the rest of a thought whose last K characters may begin the end tag.
    thought = [f"thought-{k}" for k in range(len(CLOSE))]
    rules = [
        f"root ::= {'thought-0' if inside else 'opened? '} thought-space answer-root",
        f'opened ::= "{OPEN}" thought-0',
        "thought-space ::= [ \\n]*",
    ]
    for k, name in enumerate(thought):
        expected, after = CLOSE[k], f" {thought[k + 1]}" if k + 1 < len(CLOSE) else ""
        restart = "" if expected == "<" else "<"
        again = f'"<" {thought[1]} | ' if restart else ""
        rules.append(f'{name} ::= "{expected}"{after} | {again}[^{restart}{expected}] thought-0')
    renamed = _ROOT.sub(lambda m: "answer-root" if m[0] == "root" else m[0], grammar)
    return "\n".join([*rules, renamed])


def _repetitions(text: str) -> list[int]:
    """The larger number of each repetition, such as 5 for ``{2,5}``; huge ones are not read."""
    found = _REPETITION.findall(text)
    return [max(int(n[:10] or 0) for n in numbers) for numbers in found]


def _elements(node: Any, depth: int = 0) -> int:
    """About how many elements the grammar of a schema has, with repetitions expanded."""
    _require_depth(depth)
    if isinstance(node, list):
        return 1 + sum(_elements(each, depth + 1) for each in node)
    if not isinstance(node, dict):
        return 1
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise invalid("a $ref of the JSON schema must begin with #")
    pairs = [[node.get(key) for key in keys] for keys in _COUNTS]
    counts = [max(n for n in [0, *pair] if isinstance(n, int | float)) for pair in pairs]
    counts += _repetitions(str(node.get("pattern", "")))
    product = math.prod(max(1, int(min(abs(count), 10**9))) for count in counts)
    return product * (1 + sum(_elements(each, depth + 1) for each in node.values()))
