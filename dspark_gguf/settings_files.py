"""Settings from presets, YAML files and plain values, checked by the models of `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import shipped

#: Bytes of a settings file; the largest useful one has some thousands.
_MOST_YAML = 2**20

Part = TypeVar("Part", bound=BaseModel)
Tree = dict[str, Any]


def checked(kind: type[Part], values: Tree, source: str) -> Part:
    """Build `kind` from plain values.

    Raises:
        UsageError: naming `source` and the first key that does not fit.

    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = first["loc"]
        key = _short(_place(values, place) or "the top level")
        if first["type"] == "extra_forbidden":
            inner: Any = kind
            for name in place[:-1]:
                inner = inner.model_fields[name].annotation
            known = ", ".join(sorted(inner.model_fields))
            raise UsageError(
                f"unknown setting {key!r} in {source}", f"Use one of: {known}."
            ) from None
        wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if wanted.startswith(("greater", "less")):
            wanted = f"a value {wanted}"
        found = _short(repr(first.get("input")))
        raise UsageError(f"{key} in {source} is {found}", f"It takes {_short(wanted)}.") from None


def _place(values: Any, places: tuple[int | str, ...]) -> str:
    """The part of an error's place that is in the values: pydantic appends types to it."""
    known = []
    for part in places:
        try:
            values = values[part]
        except (LookupError, TypeError):
            break
        known.append(str(part))
    return ".".join(known)


def merged(below: Tree, above: Tree) -> Tree:
    """`above` over `below`, key by key, into nested dictionaries."""
    out = dict(below)
    for key, value in above.items():
        inner = out.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        out[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return out


def preset_names() -> list[str]:
    """Names that ``--config`` takes besides files."""
    return sorted(path.stem for path in shipped("configs").glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them make a tree that no memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the base class."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*), which settings do not need")
        return super().compose_node(parent, index)


def plain_yaml(text: str) -> Any:
    """The plain values of YAML text.

    Raises:
        ValueError: the text is not YAML; one line says why.

    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:
        # PyYAML also raises what int(), dates and deep nesting raise.
        raise ValueError(_short(" ".join(str(error).split()))) from None


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


def read_yaml(name_or_file: str) -> Tree:
    """The plain values of a preset or a YAML file.

    Raises:
        UsageError: no such preset or file, or not a YAML mapping.

    """
    preset = shipped("configs") / f"{name_or_file}.yaml"
    path = preset if name_or_file in preset_names() else Path(name_or_file).expanduser()
    try:
        if path.stat().st_size > _MOST_YAML:
            raise ValueError(f"more than {_MOST_YAML} bytes")
        values = plain_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        presets = ", ".join(preset_names())
        problem = f"--config {name_or_file!r} is neither a preset nor a YAML file"
        raise UsageError(problem, f"The presets are {presets}.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} as YAML: {error}", "Correct the file.") from None
    if not isinstance(values, dict | None):
        problem = f"{path} has a {type(values).__name__} instead of a mapping of settings"
        raise UsageError(problem, "See `dspark-gguf run --show-config`.")
    return values or {}


def load_settings(config: str | None, flags: Tree, below: Tree | None = None) -> Settings:
    """Defaults, then `below` (a session's), then the presets or files of `config`, then `flags`.

    `config` may name several, such as ``code,cuda``: one for the kind of text and one for the
    machine. The last one that sets a key wins.

    Raises:
        UsageError: an unknown key or a value out of range, with its source.

    """
    values: Tree = below or {}
    checked(Settings, values, "the session")
    names = [] if config is None else config.split(",")
    if config and Path(config).expanduser().exists():  # a file's name may have a comma
        names = [config]
    for name in names:
        tree = read_yaml(name)
        checked(Settings, tree, f"--config {name}")
        values = merged(values, tree)
    return checked(Settings, merged(values, flags), "the command line")
