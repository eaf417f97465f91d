"""The base class of all groups of settings: frozen, validated, accepts renamed values."""

from __future__ import annotations

import reprlib
import sys
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic import ValidationInfo as Info
from typing_extensions import Self

from dspark_gguf.errors import UsageError

#: Field and old value -> new value; the old one works until the next version.
RENAMED: dict[tuple[str | None, str], str] = {
    ("acceptance", "ratio"): "rejection",
    ("acceptance", "auto"): "match",
}


def current_value(field: str | None, value: Any) -> Any:
    """`value`, or its new name if it was renamed, with one warning on stderr."""
    new = RENAMED.get((field, value)) if isinstance(value, str) else None
    if new:
        _say_renamed(f"{field} {value} is now called {new}")
    return new or value


@cache
def _say_renamed(line: str) -> None:
    sys.stderr.write(line + "\n")


class Part(BaseModel):
    """A group of settings; the docstring of a field is the help of its option."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def given(cls, value: Self | None) -> Self:
        """`value`, or the defaults if None; a `UsageError` if it has another type."""
        if value is None:
            return cls()
        if not isinstance(value, cls):
            problem = f"{reprlib.repr(value)} is given instead of {cls.__name__} settings"
            raise UsageError(problem, f"Write {cls.__name__}(...).")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _as_it_is_called_now(cls, value: Any, info: Info) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and "on" in get_args(kind):
            return "on" if value else "off"  # as YAML reads these words
        return current_value(info.field_name, value)
