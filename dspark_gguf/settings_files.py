"""Settings from presets, YAML files and plain values, validated by the models of `config`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dspark_gguf.config import Settings, option_names
from dspark_gguf.errors import UsageError, meant, reason_of
from dspark_gguf.paths import MIB, packaged, read_whole
from dspark_gguf.visible import shortened

Tree = dict[str, Any]
COMMAND_LINE = "the command line"
#: Prefix of a pydantic error type -> what the setting takes.
_TAKES = {
    "float": "a number", "finite": "a number", "int": "a whole number", "bool": "on or off",
    "string": "text", "tuple": "a list", "dict": "keys with values", "model": "keys with values",
}  # fmt: skip

_short = partial(shortened, most=300)


def validate(values: Tree, source: str) -> Settings:
    """Settings from plain values; a UsageError names the first wrong key, and the `source`."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _refusal(values, source, error.errors()[0]) from None


def _refusal(values: Tree, source: str, wrong: Any) -> UsageError:
    """The error to raise for a pydantic error about a value."""
    kind, said = wrong["type"], wrong["msg"].removeprefix("Value error, ")
    if kind in ("extra_forbidden", "invalid_key"):
        *outer, name = map(str, wrong["loc"])
        inner: Any = Settings
        for part in outer:
            inner = inner.model_fields[part].annotation
        hint = f"Use one of: {', '.join(sorted(inner.model_fields))}."
        problem = f"unknown setting {_short('.'.join([*outer, name]))!r} in {source}"
        return UsageError(problem, meant(name, inner.model_fields) + hint)
    place = _place(values, wrong["loc"])
    if kind == "value_error" and len(place) == 1:  # two settings that do not go together
        return UsageError(said, "Leave one out.")
    where = f"{_short('.'.join(place)) or 'the top level'} in {source}"
    if source == COMMAND_LINE:
        where = option_names(*reversed(place[:2]))[-1]
    elif not source:
        where = _short(".".join(place[1:]))
    takes = said.removeprefix("Input should be ")
    if kind == "literal_error":
        takes = takes.replace("'", "")
    if takes.startswith(("greater", "less")):
        takes = f"a value {takes}"
    takes = _TAKES.get(kind.partition("_")[0], takes)
    found = _short(repr(wrong.get("input")))
    return UsageError(f"{where} is {found}", f"It takes {_short(takes)}.")


def _place(values: Any, places: tuple[int | str, ...]) -> list[str]:
    """The part of an error's location that is in the values; pydantic appends types to it."""
    known = []
    for part in places:
        try:
            values = values[part]
        except (LookupError, TypeError):
            break
        known.append(str(part))
    return known


def merge(below: Tree, above: Tree) -> Tree:
    """`above` over `below`, setting by setting; a setting that is a dictionary is replaced."""
    out = dict(below)
    for key, value in above.items():
        inner = out.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        out[key] = {**inner, **value} if both else value  # type: ignore[dict-item]
    return out


def preset_names() -> list[str]:
    """The presets: names that ``--config`` takes besides files."""
    return sorted(path.stem for path in packaged("configs").glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can make a tree that exhausts the memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the base class."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which settings do not need")
        return super().compose_node(parent, index)


def plain_yaml(text: str) -> Any:
    """The plain values of YAML text; a ValueError of one line if it is invalid."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:
        # PyYAML also raises what int(), dates and deep nesting raise.
        raise ValueError(_short(" ".join(str(error).split()))) from None


def read_yaml(name_or_file: str) -> Tree:
    """The plain values of a preset or a YAML file."""
    preset = packaged("configs") / f"{name_or_file}.yaml"
    path = preset if name_or_file in preset_names() else Path(os.path.expanduser(name_or_file))
    try:
        if not name_or_file:
            raise FileNotFoundError
        values = plain_yaml(read_whole(path, MIB).decode("utf-8"))
    except FileNotFoundError:
        problem = f"--config {name_or_file!r} is neither a preset nor a YAML file"
        hint = meant(name_or_file, preset_names()) if name_or_file else ""
        hint += f"The presets are {', '.join(preset_names())}."
        raise UsageError(problem, hint) from None
    except (OSError, ValueError) as error:
        problem = f"cannot read {path} as YAML: {reason_of(error)}"
        raise UsageError(problem, "Correct the file.") from None
    if not isinstance(values, dict | None):
        problem = f"{path} has a {type(values).__name__} instead of a mapping of settings"
        raise UsageError(problem, "See `dspark-gguf run --show-config`.")
    # A section without settings: all of them are commented out.
    fields = Settings.model_fields.items()
    parts = [name for name, field in fields if hasattr(field.annotation, "model_fields")]
    empty: dict[str, Tree] = {name: {} for name in parts}
    return {key: empty.get(key) if each is None else each for key, each in (values or {}).items()}


def load_settings(config: str | None, flags: Tree, below: Tree | None = None) -> Settings:
    """Defaults, then `below` (a session's), then the presets or files of `config`, then `flags`.

    `config` may name several, such as ``code,cuda``: one for the kind of text and one for the
    machine. The last one that sets a key wins. A UsageError names the source of a wrong value.
    """
    values: Tree = below or {}
    validate(values, "the session")
    names = [] if config is None else config.split(",")
    if config and os.path.exists(os.path.expanduser(config)):  # a file's name may have a comma
        names = [config]
    for name in names:
        tree = read_yaml(name)
        validate(tree, f"--config {name}")
        values = merge(values, tree)
    return validate(merge(values, flags), COMMAND_LINE)
