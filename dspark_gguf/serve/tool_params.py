"""The request parameters ``tools`` and ``tool_choice``."""

from __future__ import annotations

from typing import Any

from dspark_gguf.serve.errors import invalid


def parse_tool(tool: dict[str, Any], k: int, parameters: str = "parameters") -> dict[str, Any]:
    """Name, description and parameters of tool number `k`; a `RequestError` if one is invalid.

    `parameters` is the key of the JSON schema of the parameters in this API.
    """
    name, schema = tool.get("name"), tool.get(parameters)
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise invalid(f"tools[{k}] needs a name of 1 to 128 characters", "tools")
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"tools[{k}].{parameters} must be a JSON schema", "tools")
    return {
        "name": name,
        "description": str(tool.get("description") or ""),
        "parameters": schema or {"type": "object", "properties": {}},
    }


def parse_tool_choice(choice: str | dict[str, Any] | None) -> tuple[str, set[str | None] | None]:
    """OpenAI's ``tool_choice`` (auto, none, required or a name), and the names of allowed tools.

    None instead of the names means that all tools are allowed.

    Raises:
        RequestError: the choice is invalid.
    """
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid(f"tool_choice is {choice}: not auto, none or required", "tool_choice")
        return choice, None
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # nested in chat requests only
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(tools, list):
            raise invalid("tool_choice.tools must be a list", "tool_choice")
        return parse_tool_choice(str(allowed.get("mode")))[0], {_name(each) for each in tools}
    name = _name(choice)
    if name is None:
        raise invalid("tool_choice must name a function", "tool_choice")
    return name, None


def _name(tool: Any) -> str | None:
    """The name of a function, which only chat requests nest; None if `tool` is no function."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
