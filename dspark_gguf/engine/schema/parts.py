"""The parts of a JSON schema: checked, found by `$ref`, and joined where several hold at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from dspark_gguf.engine.schema.shared import as_json

Schema = dict[str, Any]

#: Most characters read, about, and most alternatives of two `anyOf` that hold at once.
_MAX_WORK, _MAX_CHOICES = 16 * 1024**2, 1000

#: Keywords that rule something -> what they are.
_KNOWN: dict[str, tuple[type, ...]] = {
    "$ref": (str,), "type": (str, list), "enum": (list,), "const": (object,), "allOf": (list,),
    "anyOf": (list,), "oneOf": (list,), "properties": (dict,), "required": (list,),
    "additionalProperties": (dict, bool), "unevaluatedProperties": (dict, bool),
    "propertyNames": (dict, bool), "items": (dict, bool, list), "prefixItems": (list,),
    "additionalItems": (dict, bool), "unevaluatedItems": (dict, bool), "minItems": (int, float),
    "maxItems": (int, float), "minLength": (int, float), "maxLength": (int, float),
    "pattern": (str,), "format": (str,), "minimum": (int, float), "maximum": (int, float),
    "exclusiveMinimum": (int, float), "exclusiveMaximum": (int, float),
}  # fmt: skip
#: What a grammar cannot express; the last ones may be there if they say nothing.
_REFUSED = (
    "not", "if", "contains", "maxProperties", "multipleOf", "$dynamicRef", "$recursiveRef",
    "uniqueItems", "minProperties", "patternProperties", "dependentRequired", "dependentSchemas",
    "dependencies",
)  # fmt: skip
_MAY_BE_EMPTY = _REFUSED[7:]
FORMATS = ("date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5")
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


class Impossible(ValueError):  # noqa: N818 - a finding, which an alternative may make good
    """Nothing fits this part of a schema."""


def checked(schema: Any) -> Schema:
    """What rules something at the top of a schema, in the words of the newest standard."""
    if schema is False:
        raise Impossible("a part that must be there is false")
    if not isinstance(schema, dict | bool):
        raise ValueError(f"{as_json(schema)[:40]} is not a schema")
    schema = {} if schema is True else schema
    for word in _REFUSED:
        if word in schema and (schema[word] or word not in _MAY_BE_EMPTY):
            raise ValueError(f"a grammar cannot express {word}")
    found = {word: schema[word] for word in schema if word in _KNOWN}
    for word, value in found.items():
        is_wrong = isinstance(value, bool) and not {bool, object} & {*_KNOWN[word]}
        if is_wrong or not isinstance(value, _KNOWN[word]):
            raise ValueError(f"{word} has an invalid value: {as_json(value)[:40]}")
    if not all(isinstance(name, str) for name in found.get("required", [])):
        raise ValueError("required contains something that is not a name")
    if isinstance(found.get("items"), list):
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found["additionalItems"]
    found.pop("additionalItems", None)
    if found.get("format") not in FORMATS:
        found.pop("format", None)
    both = []
    for word, general in (("const", "enum"), ("oneOf", "anyOf")):
        if word in found:
            value = found.pop(word)
            both.append({general: [value] if word == "const" else value})
    for each in both:
        if each.keys() & found.keys():
            found["allOf"] = [*found.get("allOf", []), each]
        else:
            found |= each
    return found


class Parts:
    """What the parts of one schema mean. Small schemas may mean much: too much is refused."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._resolved: dict[str, Schema] = {}
        self._left = _MAX_WORK

    def target(self, ref: str) -> Any:
        """What a `$ref` means."""
        start, *path = ref.split("/")
        here: Any = self._root
        try:
            for part in path:
                name = unquote(part).replace("~1", "/").replace("~0", "~")
                here = here[int(name)] if isinstance(here, list) else here[name]
        except (LookupError, TypeError, ValueError):
            raise ValueError(f"$ref {ref} leads nowhere") from None
        if start != "#":
            raise ValueError(f"$ref {ref} does not begin with #/")
        return here

    def text(self, schema: Any) -> str:
        """The same for schemas that are alike."""
        text = as_json(schema)
        self._left -= 500 + len(text)
        if self._left < 0:
            raise ValueError("its $ref, allOf and anyOf expand to too much")
        return text

    def resolved(self, schema: Any) -> Schema:
        """The same without `$ref` and `allOf` at its top."""
        text = self.text(schema)
        if text not in self._resolved:
            found = checked(schema)
            parts = found.pop("allOf", [])
            if "$ref" in found:
                parts = [self.target(found.pop("$ref")), *parts]
            for part in parts:
                found = _joined(found, self.resolved(part))
                self.text(found)
            self._resolved[text] = found
        return self._resolved[text]


def types(schema: Schema) -> list[str]:
    """Those that it names."""
    named = schema.get("type", [])
    found = [named] if isinstance(named, str) else named
    for each in found:
        if each not in TYPES:
            raise ValueError(f"there is no type {as_json(each)[:40]}")
    return list(found)


def _joined(one: Schema, two: Schema) -> Schema:
    """What both ask for."""
    for own, other in ((one, two), (two, one)):
        closed = own.get("additionalProperties", True)
        if own is two and closed is True:
            closed = own.get("unevaluatedProperties", True)
        if closed is not True and other.get("properties", {}).keys() - own.get("properties", {}):
            raise ValueError("allOf or anyOf adds properties to those of additionalProperties")
        if "prefixItems" in own and "items" in other and "prefixItems" not in other:
            raise ValueError("allOf or anyOf has prefixItems beside other items")
    found = {**one, **two}
    for word in one.keys() & two.keys():
        if as_json(one[word]) != as_json(two[word]):
            found[word] = _both(word, one, two)
    return found


def _both(word: str, one: Schema, two: Schema) -> Any:
    a, b = one[word], two[word]
    if word == "properties":
        return {**a, **b, **{name: {"allOf": [a[name], b[name]]} for name in a if name in b}}
    if word == "required":
        return list(dict.fromkeys([*a, *b]))
    if word == "enum":
        return _common(a, b)
    if word == "type":
        return _common_types(types(one), types(two))
    if word == "anyOf" and len(a) * len(b) <= _MAX_CHOICES:
        return [{"allOf": [left, right]} for left in a for right in b]
    if word in ("items", "additionalProperties", "propertyNames"):
        return {"allOf": [a, b]}
    if word in ("minItems", "minLength", "minimum", "exclusiveMinimum"):
        return max(a, b)
    if word in ("maxItems", "maxLength", "maximum", "exclusiveMaximum"):
        return min(a, b)
    raise ValueError(f"a grammar cannot express two of {word} at once")


def _common(one: Sequence[Any], two: Sequence[Any]) -> list[Any]:
    texts = {as_json(value) for value in two}
    return [value for value in one if as_json(value) in texts]


def _common_types(one: list[str], two: list[str]) -> list[str]:
    """An integer is a number, too."""
    left, right = ({*each, "integer"} if "number" in each else {*each} for each in (one, two))
    both = left & right
    found = [
        each for each in TYPES if each in both and not (each == "integer" and "number" in both)
    ]
    if not found:
        raise Impossible(f"type is {' and '.join([*one[:1], *two[:1]])} at once")
    return found
