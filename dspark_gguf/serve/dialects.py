"""What other servers name in their own way, and what cannot be done: said, never ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dspark_gguf.serve.errors import invalid

_SCHEMA = "send a JSON schema or a grammar (GBNF)"
#: What is not offered -> what to do instead. Other names that are not known are ignored.
_REFUSED = {
    "functions": "send tools",
    "function_call": "send tool_choice, and tool_calls in messages",
    "guided_regex": _SCHEMA,
    "guided_choice": _SCHEMA,
    "guided_grammar": _SCHEMA,
    "background": "nothing is stored here: wait for the answer, or stream it",
}


def require_possible(given: Mapping[str, Any]) -> None:
    """Refuse what is asked for by a name that is known and not offered, with a `RequestError`."""
    for name, instead in _REFUSED.items():
        if given.get(name):
            raise invalid(f"{name} is not offered: {instead}", name)


def schema_among(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """A schema under vLLM's names, which may be JSON text; None: there is none.

    Raises:
        RequestError: it is no schema, or the answer should be held to something else.

    """
    name, schema = "guided_json", given.get("guided_json")
    if isinstance(wanted := given.get("structured_outputs"), dict):
        name, schema = "structured_outputs", wanted.get("json", schema)
        for other in (key for key, value in wanted.items() if value and key != "json"):
            raise invalid(f"structured_outputs.{other} is not offered: {_SCHEMA}", name)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise invalid(f"{name}: its schema is no JSON", name) from None
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"{name}: its schema must be an object", name)
    return schema
