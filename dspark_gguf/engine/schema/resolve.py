"""Subschemas of a JSON schema: validated, dereferenced (`$ref`), and merged (`allOf`)."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from dspark_gguf.engine.schema.rules import as_json

Schema = dict[str, Any]

#: Maximum characters of JSON, roughly, that are read, and maximum alternatives of a merged `anyOf`.
_MAX_WORK, _MAX_ALTERNATIVES = 16 * 1024**2, 1000

#: The keywords that restrict a value -> the Python types of their own values.
_SUPPORTED: dict[str, tuple[type, ...]] = {
    "$ref": (str,), "type": (str, list), "enum": (list,), "const": (object,), "allOf": (list,),
    "anyOf": (list,), "oneOf": (list,), "properties": (dict,), "required": (list,),
    "additionalProperties": (dict, bool), "unevaluatedProperties": (dict, bool),
    "propertyNames": (dict, bool), "items": (dict, bool, list), "prefixItems": (list,),
    "additionalItems": (dict, bool), "unevaluatedItems": (dict, bool), "minItems": (int, float),
    "maxItems": (int, float), "minLength": (int, float), "maxLength": (int, float),
    "pattern": (str,), "format": (str,), "minimum": (int, float), "maximum": (int, float),
    "exclusiveMinimum": (int, float), "exclusiveMaximum": (int, float),
}  # fmt: skip
#: The keywords that a grammar cannot express: those refused always, and those refused unless empty.
_UNSUPPORTED = (
    "not", "if", "contains", "maxProperties", "multipleOf", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_UNSUPPORTED_UNLESS_EMPTY = (
    "uniqueItems", "minProperties", "patternProperties", "dependentRequired", "dependentSchemas",
    "dependencies",
)  # fmt: skip
_FORMATS = ("date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5")
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


class Unsatisfiable(ValueError):  # noqa: N818 - not an error where there is another alternative
    """No value matches this subschema."""


def normalized(schema: Any) -> Schema:
    """The supported keywords of a schema, validated, with old ones replaced by today's.

    Raises:
        Unsatisfiable: the schema is `false`.
        ValueError: it is not a valid schema, or a grammar cannot express one of its keywords.

    """
    if schema is False:
        raise Unsatisfiable("a required part of the schema is false")
    if not isinstance(schema, dict | bool):
        raise ValueError(f"{as_json(schema)[:40]} is not a schema")
    schema = {} if schema is True else schema
    refused = [word for word in _UNSUPPORTED if word in schema]
    refused += [word for word in _UNSUPPORTED_UNLESS_EMPTY if schema.get(word)]
    if refused:
        raise ValueError(f"a grammar cannot express {refused[0]}")
    found = {word: schema[word] for word in schema if word in _SUPPORTED}
    for word, value in found.items():
        is_wrong = isinstance(value, bool) and not {bool, object} & {*_SUPPORTED[word]}
        if is_wrong or not isinstance(value, _SUPPORTED[word]):
            raise ValueError(f"{word} has an invalid value: {as_json(value)[:40]}")
    if not all(isinstance(name, str) for name in found.get("required", [])):
        raise ValueError("required contains something that is not a name")
    if isinstance(found.get("items"), list):
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found["additionalItems"]
    found.pop("additionalItems", None)
    if found.get("format") not in _FORMATS:
        found.pop("format", None)
    for word, general in (("const", "enum"), ("oneOf", "anyOf")):
        if word in found:
            value = found.pop(word)
            alternatives = [value] if word == "const" else value
            if general in found:
                found["allOf"] = [*found.get("allOf", []), {general: alternatives}]
            else:
                found[general] = alternatives
    return found


class Resolver:
    """Dereferences and merges the subschemas of one schema.

    A small schema may expand to a very large one, so the work is limited: beyond that, a
    `ValueError`.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._resolved: dict[str, Schema] = {}
        self._work_left = _MAX_WORK

    def dereference(self, ref: str) -> Any:
        """The subschema that a `$ref` refers to."""
        start, *path = ref.split("/")
        here: Any = self._root
        try:
            for part in path:
                name = unquote(part).replace("~1", "/").replace("~0", "~")
                here = here[int(name)] if isinstance(here, list) else here[name]
        except (LookupError, TypeError, ValueError):
            raise ValueError(f"$ref {ref} refers to nothing") from None
        if start != "#":
            raise ValueError(f"$ref {ref} does not begin with #/")
        return here

    def key(self, schema: Any) -> str:
        """The JSON of a schema: equal for equal schemas. Each call counts as work."""
        key = as_json(schema)
        self._work_left -= 500 + len(key)
        if self._work_left < 0:
            raise ValueError("its $ref, allOf and anyOf expand to too much")
        return key

    def resolved(self, schema: Any) -> Schema:
        """An equivalent of `schema` without `$ref` and `allOf` at its top level."""
        key = self.key(schema)
        if key not in self._resolved:
            found = normalized(schema)
            parts = found.pop("allOf", [])
            if "$ref" in found:
                parts = [self.dereference(found.pop("$ref")), *parts]
            for part in parts:
                found = _merged(found, self.resolved(part))
                self.key(found)
            self._resolved[key] = found
        return self._resolved[key]


def types(schema: Schema) -> list[str]:
    """The names in the keyword `type`; none if it is absent."""
    given = schema.get("type", [])
    found = [given] if isinstance(given, str) else given
    for each in found:
        if each not in _TYPES:
            raise ValueError(f"there is no type {as_json(each)[:40]}")
    return list(found)


def _merged(one: Schema, two: Schema) -> Schema:
    """A schema that matches what both match. `two` is the part of an `allOf` or `$ref`."""
    for own, other in ((one, two), (two, one)):
        additional = own.get("additionalProperties", True)
        if own is two and additional is True:
            additional = own.get("unevaluatedProperties", True)
        added = other.get("properties", {}).keys() - own.get("properties", {})
        if additional is not True and added:
            raise ValueError("allOf or anyOf adds properties to those of additionalProperties")
        if "prefixItems" in own and "items" in other and "prefixItems" not in other:
            raise ValueError("a grammar cannot express items in allOf or anyOf with prefixItems")
    found = {**one, **two}
    for word in one.keys() & two.keys():
        if as_json(one[word]) != as_json(two[word]):
            found[word] = _merged_values(word, one, two)
    return found


def _merged_values(word: str, one: Schema, two: Schema) -> Any:
    """The value of keyword `word` in the merged schema."""
    a, b = one[word], two[word]
    if word == "properties":
        return {**a, **b, **{name: {"allOf": [a[name], b[name]]} for name in a if name in b}}
    if word == "required":
        return list(dict.fromkeys([*a, *b]))
    if word == "enum":
        texts = {as_json(value) for value in b}
        return [value for value in a if as_json(value) in texts]
    if word == "type":
        return _common_types(types(one), types(two))
    if word == "anyOf" and len(a) * len(b) <= _MAX_ALTERNATIVES:
        return [{"allOf": [left, right]} for left in a for right in b]
    if word in ("items", "additionalProperties", "propertyNames"):
        return {"allOf": [a, b]}
    if word in ("minItems", "minLength", "minimum", "exclusiveMinimum"):
        return max(a, b)
    if word in ("maxItems", "maxLength", "maximum", "exclusiveMaximum"):
        return min(a, b)
    raise ValueError(f"a grammar cannot express two different values of {word} at once")


def _common_types(one: list[str], two: list[str]) -> list[str]:
    """The types in both lists, where number includes integer."""
    left, right = ({*each, "integer"} if "number" in each else {*each} for each in (one, two))
    common = left & right
    if "number" in common:
        common.remove("integer")
    if not common:
        raise Unsatisfiable(
            f"no value is of the types {' and '.join([*one[:1], *two[:1]])} at once"
        )
    return [each for each in _TYPES if each in common]
