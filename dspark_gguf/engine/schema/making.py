"""A JSON schema as a grammar (GBNF): every text that fits it is JSON, and valid.

Not every valid text fits. Properties come in their order, the required ones first, and where
`properties` are named, others come only if `additionalProperties` says so. `oneOf` is taken as
`anyOf`. What a grammar cannot express is refused by name; what JSON Schema only notes (a title, a
default, a `format` without a rule here) is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Any

from dspark_gguf.engine.schema.numerals import number_rule
from dspark_gguf.engine.schema.parts import Impossible, Parts, Schema, checked, types
from dspark_gguf.engine.schema.pattern import MAX_REPEATS, pattern_rule
from dspark_gguf.engine.schema.shared import COMMA, SHARED, as_json, key_other_than, literal, times

_MAX_RULES = 20_000
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
_NAMES = re.compile(r"[\w-]+( \| [\w-]+)*")
_WORD = re.compile(r"[a-z][a-z-]*")
#: Keywords that say of what type a value is.
_TYPICAL = {
    "object": ("properties", "required", "additionalProperties", "unevaluatedProperties",
               "propertyNames"),
    "array": ("items", "prefixItems", "unevaluatedItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}  # fmt: skip


def schema_to_gbnf(text: str) -> str:
    """The grammar of a JSON schema, with a first rule `root`.

    A ValueError says that it is not a JSON schema, or that no grammar can express it.
    """
    schema = json.loads(text)
    maker = _Maker(schema)
    try:
        root = maker.visit(schema, "root")
        maker.require_ends()
    except RecursionError:
        raise ValueError("it is nested too deeply, or a $ref leads to itself") from None
    return "\n".join(f"{name} ::= {rule}" for name, rule in maker.rules(root).items())


class _Maker:
    def __init__(self, root: Schema) -> None:
        self._parts = Parts(root)
        self._made: dict[str, str] = {}  # the text of a schema -> the name of its rule
        self._rules: dict[str, str] = {}
        self._numbers = count()

    def rules(self, root: str) -> dict[str, str]:
        """All, with those that they share."""
        found, waiting = {"root": root}, [root, "space", *self._rules.values()]
        while waiting:
            for word in _WORD.findall(_QUOTED.sub(" ", waiting.pop())):
                if word in SHARED and word not in found:
                    found[word] = SHARED[word]
                    waiting.append(SHARED[word])
        return {**found, **self._rules}

    def require_ends(self) -> None:
        """Raise a `ValueError` if an alternative leads to itself before its first character."""
        alone = {
            name: set(r.split(" | ")) for name, r in self._rules.items() if _NAMES.fullmatch(r)
        }
        try:
            TopologicalSorter(alone).prepare()
        except CycleError:
            raise ValueError("a $ref leads to itself") from None

    def visit(self, schema: Any, hint: str) -> str:
        """The name of the rule of a schema."""
        found = checked(schema)
        if found.keys() == {"$ref"}:
            return self.visit(self._parts.target(found["$ref"]), found["$ref"].split("/")[-1])
        text = self._parts.text(found)
        if text not in self._made:
            self._made[text] = name = self._name(hint)
            try:
                self._rules[name] = self._rule(self._parts.resolved(found), hint)
            except Impossible:
                del self._made[text]
                raise
        return self._made[text]

    def _name(self, hint: str) -> str:
        if (number := next(self._numbers)) > _MAX_RULES:
            raise ValueError(f"it becomes more than {_MAX_RULES} rules")
        return f"s{number}-{re.sub('[^a-zA-Z0-9]+', '-', hint)[:30].strip('-')}"

    def _new(self, rule: str, hint: str) -> str:
        name = self._name(hint)
        self._rules[name] = rule
        return name

    def _any(self, schemas: Iterable[Schema], hint: str) -> str:
        """Alternatives, without those that nothing fits."""
        found: dict[str, None] = {}
        wrong = Impossible("anyOf, enum or type is empty")
        for each in schemas:
            try:
                found[self.visit(each, hint)] = None
            except Impossible as error:
                wrong = error
        if not found:
            raise wrong
        return " | ".join(found)

    def _rule(self, schema: Schema, hint: str) -> str:
        if "anyOf" in schema:
            more = {word: value for word, value in schema.items() if word != "anyOf"}
            choices = schema["anyOf"]
            return self._any([{"allOf": [more, one]} for one in choices] if more else choices, hint)
        named = types(schema)
        if "enum" in schema:
            return self._enum(schema, named)
        if "type" in schema and len(named) != 1:
            return self._any(({**schema, "type": each} for each in named), hint)
        untyped = (kind for kind, words in _TYPICAL.items() if schema.keys() & {*words})
        kind = named[0] if named else next(untyped, "value")
        if kind == "object":
            return self._object(schema, hint)
        if kind == "array":
            return self._array(schema, hint)
        if kind == "string":
            return self._string(schema, hint)
        return number_rule(schema, kind) if kind in ("integer", "number") else kind

    def _enum(self, schema: Schema, named: list[str]) -> str:
        if beside := schema.keys() & {word for words in _TYPICAL.values() for word in words}:
            raise ValueError(f"a grammar cannot express enum or const beside {min(beside)}")
        values = [value for value in schema["enum"] if not named or _types_of(value) & {*named}]
        if not values:
            raise Impossible("no value of enum or const is of its type")
        return f"({' | '.join(literal(as_json(value)) for value in values)}) space"

    def _string(self, schema: Schema, hint: str) -> str:
        least, most = _counts(schema, "Length")
        given = [*schema.keys() & {"pattern", "format"}]
        given += ["minLength or maxLength"] if least or most is not None else []
        if len(given) > 1:
            raise ValueError(f"a grammar cannot express {given[0]} beside {given[1]}")
        if not given:
            return "string"
        inner = times("char", least, most)
        if "pattern" in schema:
            inner = f"({pattern_rule(schema['pattern'], lambda part: self._new(part, hint))})"
        elif "format" in schema:
            inner = schema["format"].rstrip("12345")
        return rf'"\"" {inner} "\"" space'

    def _array(self, schema: Schema, hint: str) -> str:
        least, most = _counts(schema, "Items")
        first = schema.get("prefixItems", [])[:most]
        found = [self.visit(each, f"{hint}-{k}") for k, each in enumerate(first)]
        least, most = max(0, least - len(first)), None if most is None else most - len(first)
        more = schema.get("items", schema.get("unevaluatedItems"))
        if more is None:
            more, most = True, least if first else most
        rest = self._items(more, least, most, bool(first), hint) if most != 0 else ""
        return f'"[" space {COMMA.join(found)} {rest} "]" space'

    def _items(self, schema: Any, least: int, most: int | None, is_after: bool, hint: str) -> str:
        try:
            item = self.visit(schema, f"{hint}-item")
        except Impossible:
            if least:
                raise
            return ""
        another = self._new(f'"," space {item}', hint)
        if is_after:
            return times(another, least, most)
        found = f"{item} {times(another, max(0, least - 1), None if most is None else most - 1)}"
        return found if least else f"({found})?"

    def _object(self, schema: Schema, hint: str) -> str:
        required = schema.get("required", [])
        more = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        if more is None and "properties" not in schema:
            more = True
        listed = schema.get("properties", {})
        unlisted = (name for name in required if name not in listed)
        properties = {**listed, **dict.fromkeys(unlisted, True if more is None else more)}
        needed: list[str] = []
        optional: list[str] = []
        for name, each in properties.items():
            try:
                pair = f'{literal(as_json(name))} space ":" space {self.visit(each, name)}'
            except Impossible:
                if name in required:
                    raise
            else:
                (needed if name in required else optional).append(self._new(pair, name))
        after, starts = "", []
        if other := self._other(schema, more, properties, hint):
            after = f'("," space {other})*'
            starts = [f"{other} {after}"]
        for one in reversed(optional):
            starts.append(f"{one} {after}")
            after = self._new(f'("," space {one})? {after}', hint)
        body = f"{COMMA.join(needed)} {after}"
        if not needed:
            body = f"({' | '.join(reversed(starts))})?" if starts else ""
        return f'"{{" space {body} "}}" space'

    def _other(self, schema: Schema, more: Any, properties: Schema, hint: str) -> str:
        """The rule of a property that has no name in the schema; nothing if there is none."""
        names = schema.get("propertyNames", True)
        if properties and names is not True:
            raise ValueError("a grammar cannot express propertyNames beside properties or required")
        key = key_other_than(properties)
        try:
            if names is not True:
                key = self.visit({"allOf": [names, {"type": "string"}]}, hint)
            value = self.visit(False if more is None else more, f"{hint}-value")
        except Impossible:
            return ""
        return self._new(f'{key} ":" space {value}', hint)


def _types_of(value: Any) -> set[str]:
    if value is None or isinstance(value, bool):
        return {"null" if value is None else "boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {
        "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    }


def _counts(schema: Schema, of: str) -> tuple[int, int | None]:
    """Least and most, where None is no bound."""
    for word in (f"min{of}", f"max{of}"):
        value = schema.get(word, 0)
        if value != int(value) or not 0 <= value <= MAX_REPEATS:
            raise ValueError(f"{word} is {value}: a grammar counts from 0 to {MAX_REPEATS}")
    least, most = int(schema.get(f"min{of}", 0)), schema.get(f"max{of}")
    if most is not None and most < least:
        raise Impossible(f"min{of} is above max{of}")
    return least, None if most is None else int(most)
