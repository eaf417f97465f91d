"""The tools that a request offers, and which of them it wants to be called."""

from __future__ import annotations

from typing import Any

from dspark_gguf.serve.errors import invalid


def tool_of(tool: dict[str, Any], k: int, parameters: str = "parameters") -> dict[str, Any]:
    """Name, description and parameters of a tool, which has these under a name of its own."""
    name, schema = tool.get("name"), tool.get(parameters)
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise invalid(f"tools[{k}]: a name of 1 to 128 characters is needed", "tools")
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"tools[{k}]: {parameters} must be a JSON schema", "tools")
    return {
        "name": name,
        "description": str(tool.get("description") or ""),
        "parameters": schema or {"type": "object", "properties": {}},
    }


def choice_of(choice: str | dict[str, Any] | None) -> tuple[str, set[str | None] | None]:
    """OpenAI's ``tool_choice``: auto, none, required or a name; and the tools it allows, None: all.

    Raises:
        RequestError: it is none of these.

    """
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid(f"tool_choice: {choice} is not auto, none or required", "tool_choice")
        return choice, None
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # chats wrap it, responses do not
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(tools, list):
            raise invalid("tool_choice allows no list of tools", "tool_choice")
        return choice_of(str(allowed.get("mode")))[0], {_name(each) for each in tools}
    name = _name(choice)
    if name is None:
        raise invalid("tool_choice names no function", "tool_choice")
    return name, None


def _name(tool: Any) -> str | None:
    """Of a function, which chats wrap and responses do not; None: it is no function."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
