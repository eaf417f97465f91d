"""Whether a value is valid for a JSON schema: written from the standard, for what tests use."""

from __future__ import annotations

import math
import re
from datetime import date, datetime

TYPES = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: TYPES["number"](v) and math.isfinite(v) and v == int(v),
}
FORMATS = {
    "date": date.fromisoformat,
    "date-time": lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")),
}


def is_valid(value, schema, root=None):
    root = schema if root is None else root

    def all_valid(values, schemas):
        return all(is_valid(v, s, root) for v, s in zip(values, schemas, strict=True))

    if isinstance(schema, bool):
        return schema
    checks = [
        all(is_valid(value, each, root) for each in schema.get("allOf", [])),
        "anyOf" not in schema or any(is_valid(value, each, root) for each in schema["anyOf"]),
        "enum" not in schema or any(same(value, each) for each in schema["enum"]),
        "const" not in schema or same(value, schema["const"]),
    ]
    if "$ref" in schema:
        here = root
        for part in schema["$ref"].split("/")[1:]:
            here = here[part]
        checks.append(is_valid(value, here, root))
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        checks.append(any(TYPES[kind](value) for kind in kinds))
    if TYPES["number"](value):
        checks += [
            value >= schema.get("minimum", -math.inf), value <= schema.get("maximum", math.inf),
            value > schema.get("exclusiveMinimum", -math.inf),
            value < schema.get("exclusiveMaximum", math.inf),
        ]  # fmt: skip
    if isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9))
        checks.append(bool(re.search(schema.get("pattern", ""), value)))
        checks.append("format" not in schema or reads(FORMATS[schema["format"]], value))
    if isinstance(value, list):
        first = schema.get("prefixItems", [])[: len(value)]
        rest = value[len(first) :]
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9))
        checks.append(all_valid(value[: len(first)], first))
        checks.append(all_valid(rest, [schema.get("items", True)] * len(rest)))
    if isinstance(value, dict):
        known = schema.get("properties", {})
        checks.append(value.keys() >= {*schema.get("required", [])})
        checks.append(all(is_valid(value[k], known[k], root) for k in value.keys() & known))
        more = [v for k, v in value.items() if k not in known]
        checks.append(all_valid(more, [schema.get("additionalProperties", True)] * len(more)))
    return all(checks)


def reads(reader, text):
    try:
        return bool(reader(text))
    except ValueError:
        return False


def same(one, two):
    return one == two and TYPES["boolean"](one) == TYPES["boolean"](two)
