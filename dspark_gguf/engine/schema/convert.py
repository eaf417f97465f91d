"""A JSON schema as a grammar (GBNF): every text that the grammar matches is JSON, and valid.

Not every valid text matches. Properties come in the order of the schema, required ones first. Where
there are `properties`, others come only if `additionalProperties` says so. `oneOf` is read as
`anyOf`. What a grammar cannot express is refused by name. Annotations (a title, a default, a
`format` without a rule here) are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Any

from dspark_gguf.engine.schema.bounds import number_rule
from dspark_gguf.engine.schema.pattern import MAX_REPEATS, pattern_rule
from dspark_gguf.engine.schema.resolve import Resolver, Schema, Unsatisfiable, normalized, types
from dspark_gguf.engine.schema.rules import (
    COMMA,
    COMMON_RULES,
    as_json,
    key_except,
    literal,
    repeat,
)

_MAX_RULES = 20_000
_LITERAL_OR_CLASS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_RULE_NAMES = re.compile(r"[\w-]+( \| [\w-]+)*")
_COMMON_NAME = re.compile(r"[a-z][a-z-]*")
#: The keywords that restrict values of one type only.
_TYPE_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties", "unevaluatedProperties",
               "propertyNames"),
    "array": ("items", "prefixItems", "unevaluatedItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}  # fmt: skip
#: Type of a parsed JSON value that is no number -> its name in a schema.
_TYPE_NAMES: dict[type, str] = {
    type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object",
}  # fmt: skip


def schema_to_gbnf(text: str) -> str:
    """The grammar of a JSON schema, with a first rule `root`.

    Raises:
        ValueError: the text is not a JSON schema, or a grammar cannot express it.

    """
    try:
        schema = json.loads(text)
        converter = _Converter(schema)
        root = converter.visit(schema, "root")
        converter.refuse_empty_recursion()
    except RecursionError:
        raise ValueError("it is nested too deeply, or a $ref refers to itself") from None
    return "\n".join(f"{name} ::= {rule}" for name, rule in converter.rules(root).items())


class _Converter:
    """The rules of one schema: one for each different subschema, named after its place (`hint`)."""

    def __init__(self, root: Schema) -> None:
        self._resolver = Resolver(root)
        self._names: dict[str, str] = {}  # key of a subschema -> name of its rule
        self._rules: dict[str, str] = {}
        self._numbers = count()

    def rules(self, root: str) -> dict[str, str]:
        """All rules by name, including the common ones that are used."""
        found, unread = {"root": root}, [root, "space", *self._rules.values()]
        while unread:
            for name in _COMMON_NAME.findall(_LITERAL_OR_CLASS.sub(" ", unread.pop())):
                if name in COMMON_RULES and name not in found:
                    found[name] = COMMON_RULES[name]
                    unread.append(COMMON_RULES[name])
        return {**found, **self._rules}

    def refuse_empty_recursion(self) -> None:
        """Raise a `ValueError` if a rule can lead to itself before any character."""
        references = {
            name: set(rule.split(" | "))
            for name, rule in self._rules.items()
            if _RULE_NAMES.fullmatch(rule)
        }
        try:
            TopologicalSorter(references).prepare()
        except CycleError:
            raise ValueError("a $ref refers to itself") from None

    def visit(self, schema: Any, hint: str) -> str:
        """The name of the rule of a subschema."""
        found = normalized(schema)
        if found.keys() == {"$ref"}:
            ref = found["$ref"]
            return self.visit(self._resolver.dereference(ref), ref.split("/")[-1])
        key = self._resolver.key(found)
        if key not in self._names:
            self._names[key] = name = self._new_name(hint)
            try:
                self._rules[name] = self._rule(self._resolver.resolved(found), hint)
            except Unsatisfiable:
                del self._names[key]
                raise
        return self._names[key]

    def _new_name(self, hint: str) -> str:
        if (number := next(self._numbers)) > _MAX_RULES:
            raise ValueError(f"its grammar has more than {_MAX_RULES} rules")
        return f"s{number}-{re.sub('[^a-zA-Z0-9]+', '-', hint)[:30].strip('-')}"

    def _add(self, rule: str, hint: str) -> str:
        """Add a rule, and return its name."""
        name = self._new_name(hint)
        self._rules[name] = rule
        return name

    def _any_of(self, schemas: Iterable[Schema], hint: str) -> str:
        """Alternatives, without unsatisfiable ones."""
        found: dict[str, None] = {}
        error = Unsatisfiable("anyOf, enum or type is empty")
        for each in schemas:
            try:
                found[self.visit(each, hint)] = None
            except Unsatisfiable as last:
                error = last
        if not found:
            raise error
        return " | ".join(found)

    def _rule(self, schema: Schema, hint: str) -> str:
        if "anyOf" in schema:
            rest = {word: value for word, value in schema.items() if word != "anyOf"}
            choices = schema["anyOf"]
            if rest:
                choices = [{"allOf": [rest, choice]} for choice in choices]
            return self._any_of(choices, hint)
        allowed = types(schema)
        if "enum" in schema:
            return self._enum(schema, allowed)
        if "type" in schema and len(allowed) != 1:
            return self._any_of(({**schema, "type": each} for each in allowed), hint)
        implied = (kind for kind, words in _TYPE_KEYWORDS.items() if schema.keys() & {*words})
        kind = allowed[0] if allowed else next(implied, "value")
        if kind == "object":
            return self._object(schema, hint)
        if kind == "array":
            return self._array(schema, hint)
        if kind == "string":
            return self._string(schema, hint)
        return number_rule(schema, kind) if kind in ("integer", "number") else kind

    def _enum(self, schema: Schema, allowed: list[str]) -> str:
        words = {word for words in _TYPE_KEYWORDS.values() for word in words}
        if others := schema.keys() & words:
            raise ValueError(f"a grammar cannot express enum or const together with {min(others)}")
        values = [value for value in schema["enum"] if not allowed or _types_of(value) & {*allowed}]
        if not values:
            raise Unsatisfiable("no value of enum or const has the type that is given")
        return f"({' | '.join(literal(as_json(value)) for value in values)}) space"

    def _string(self, schema: Schema, hint: str) -> str:
        least, most = _counts(schema, "Length")
        given: list[str] = [word for word in ("pattern", "format") if word in schema]
        given += ["minLength or maxLength"] if least or most is not None else []
        if not given:
            return "string"
        if len(given) > 1:
            raise ValueError(f"a grammar cannot express {given[0]} together with {given[1]}")
        if "pattern" in schema:
            inner = f"({pattern_rule(schema['pattern'], lambda part: self._add(part, hint))})"
        elif "format" in schema:
            inner = schema["format"].rstrip("12345")  # any version of uuid
        else:
            inner = repeat("char", least, most)
        return rf'"\"" {inner} "\"" space'

    def _array(self, schema: Schema, hint: str) -> str:
        least, most = _counts(schema, "Items")
        prefix = schema.get("prefixItems", [])[:most]
        found = [self.visit(each, f"{hint}-{k}") for k, each in enumerate(prefix)]
        least, most = max(0, least - len(prefix)), None if most is None else most - len(prefix)
        items = schema.get("items", schema.get("unevaluatedItems"))
        if items is None:
            items, most = True, least if prefix else most
        rest = self._items(items, least, most, bool(prefix), hint) if most != 0 else ""
        return f'"[" space {COMMA.join(found)} {rest} "]" space'

    def _items(self, schema: Any, least: int, most: int | None, has_prefix: bool, hint: str) -> str:
        """`least` to `most` further items, each after a comma if it `has_prefix`."""
        try:
            item = self.visit(schema, f"{hint}-item")
        except Unsatisfiable:
            if least:
                raise
            return ""
        another = self._add(f'"," space {item}', hint)
        if has_prefix:
            return repeat(another, least, most)
        found = f"{item} {repeat(another, max(0, least - 1), None if most is None else most - 1)}"
        return found if least else f"({found})?"

    def _object(self, schema: Schema, hint: str) -> str:
        required_names = schema.get("required", [])
        additional = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        if additional is None and "properties" not in schema:
            additional = True
        listed = schema.get("properties", {})
        unlisted = (name for name in required_names if name not in listed)
        default = True if additional is None else additional
        properties = {**listed, **dict.fromkeys(unlisted, default)}
        required: list[str] = []
        optional: list[str] = []
        for name, each in properties.items():
            try:
                pair = f'{literal(as_json(name))} space ":" space {self.visit(each, name)}'
            except Unsatisfiable:
                if name in required_names:
                    raise
            else:
                (required if name in required_names else optional).append(self._add(pair, name))
        after, starts = "", []
        if other := self._additional_property(schema, additional, properties, hint):
            after = f'("," space {other})*'
            starts = [f"{other} {after}"]
        for one in reversed(optional):
            starts.append(f"{one} {after}")
            after = self._add(f'("," space {one})? {after}', hint)
        body = f"{COMMA.join(required)} {after}"
        if not required:
            body = f"({' | '.join(reversed(starts))})?" if starts else ""
        return f'"{{" space {body} "}}" space'

    def _additional_property(
        self, schema: Schema, additional: Any, properties: Schema, hint: str
    ) -> str:
        """The rule of a property whose name the schema does not list; empty if there is none."""
        names = schema.get("propertyNames", True)
        if properties and names is not True:
            raise ValueError(
                "a grammar cannot express propertyNames together with properties or required"
            )
        key = key_except(properties)
        try:
            if names is not True:
                key = self.visit({"allOf": [names, {"type": "string"}]}, hint)
            value = self.visit(False if additional is None else additional, f"{hint}-value")
        except Unsatisfiable:
            return ""
        return self._add(f'{key} ":" space {value}', hint)


def _types_of(value: Any) -> set[str]:
    """The names of the JSON types that a value has."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {_TYPE_NAMES[type(value)]}


def _counts(schema: Schema, suffix: str) -> tuple[int, int | None]:
    """The minimum and maximum of `Items` or `Length`; None: no maximum."""
    for word in (f"min{suffix}", f"max{suffix}"):
        value = schema.get(word, 0)
        if value != int(value) or not 0 <= value <= MAX_REPEATS:
            raise ValueError(f"{word} is {value}: a grammar counts from 0 to {MAX_REPEATS}")
    least, most = int(schema.get(f"min{suffix}", 0)), schema.get(f"max{suffix}")
    if most is not None and most < least:
        raise Unsatisfiable(f"min{suffix} is above max{suffix}")
    return least, None if most is None else int(most)
