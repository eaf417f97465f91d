"""Parameters of other servers: vLLM's schemas are accepted, some others rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dspark_gguf.serve.errors import invalid

_SCHEMA = "send a JSON schema or a grammar (GBNF)"
#: Unsupported parameter -> what to do instead. Unknown parameters are ignored.
_UNSUPPORTED = {
    "functions": "send tools",
    "function_call": "send tool_choice, and tool_calls in messages",
    "guided_regex": _SCHEMA,
    "guided_choice": _SCHEMA,
    "guided_grammar": _SCHEMA,
    "background": "responses are not stored, so wait for the answer, or stream it",
}

_UNSUPPORTED_OUTPUTS = ("regex", "choice", "grammar", "structural_tag")


def refuse_unsupported(given: Mapping[str, Any]) -> None:
    """Raise a `RequestError` if one of the parameters is known but not supported."""
    for name, instead in _UNSUPPORTED.items():
        if given.get(name):
            raise invalid(f"{name} is not supported: {instead}", name)


def vllm_schema(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema in vLLM's parameters, an object or JSON text; None if there is none.

    Raises:
        RequestError: the schema is invalid, or another kind of constraint is requested.
    """
    name, schema = "guided_json", given.get("guided_json")
    if isinstance(wanted := given.get("structured_outputs"), dict):
        name, schema = "structured_outputs", wanted.get("json", schema)
        if wanted.get("json_object") and schema is None:
            schema = {"type": "object"}
        for other in filter(wanted.get, _UNSUPPORTED_OUTPUTS):
            raise invalid(f"structured_outputs.{other} is not supported: {_SCHEMA}", name)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise invalid(f"the schema in {name} is not valid JSON", name) from None
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"the schema in {name} must be an object", name)
    return schema
