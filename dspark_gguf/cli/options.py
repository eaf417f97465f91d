"""Options made from the settings: name, type, default and help are those of `config`'s fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from textwrap import wrap
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

#: Part of the settings -> title in ``--help``, in its order.
_TITLES = {
    "": "Models",
    "chat": "Conversation",
    "limits": "Answer",
    "sampling": "Sampling",
    "speculation": "Speculation",
    "target_options": "Loading the target",
    "draft_options": "Loading the draft",
}
#: What loads a pair, and whether what is measured of it is kept.
PAIR = ("model", "draft", "target_options", "draft_options", "speculation.learn")
#: Every setting.
ALL = ("model", "draft", *list(_TITLES)[1:])

#: Spellings of a field, where they are more or others than its name.
_SPELLINGS = {
    "model": "-m --model", "draft": "-d --draft -md --model-draft", "system": "-sys --system",
    "max_tokens": "-n --max-tokens --predict", "temperature": "--temp --temperature",
    "typical_p": "--typical --typical-p", "json_schema": "-j --json-schema", "seed": "-s --seed",
    "mode": "--spec", "rule": "--draft-rule", "draft_min_prob": "--draft-min-prob --draft-p-min",
    "n_gpu_layers": "-ngl --gpu-layers", "n_ctx": "-c --ctx-size", "n_batch": "-b --batch-size",
    "n_ubatch": "-ub --ubatch-size", "threads": "-t --threads",
    "threads_batch": "-tb --threads-batch", "flash_attn": "-fa --flash-attn",
    "cache_type_k": "-ctk --cache-type-k", "cache_type_v": "-ctv --cache-type-v",
    "split_mode": "-sm --split-mode", "main_gpu": "-mg --main-gpu",
    "tensor_split": "-ts --tensor-split", "devices": "-dev --device",
}  # fmt: skip
_OF_THE_DRAFT = (
    "Each option for loading the target exists for the draft too, with d after its short name and "
    "-draft after its long one: -ngld, --gpu-layers-draft. `--show-config` prints their defaults."
)


def _text(value: str) -> str:
    """What was typed is UTF-8, whatever the locale says."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",")]


def _bias(values: tuple[str, ...]) -> dict[int, float | str]:
    """llama.cpp's way: ``15043+1``, ``15043-1.5``, ``15043-inf``."""
    out: dict[int, float | str] = {}
    for value in values:
        place = max(value.find("+"), value.find("-", 1))
        token, bias = value[: max(place, 0)], value[place:]
        try:
            out[int(token)] = bias if bias == "-inf" else float(bias)
        except ValueError:
            wanted = "TOKEN_ID+BIAS or TOKEN_ID-BIAS"
            raise UsageError(wanted, repr(value), "correct --logit-bias") from None
    return out


#: Of fields that are not typed as YAML has them: what reads them, and what stands for a value.
_READERS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "system": (_text, None),
    "stop": (lambda values: [_text(value) for value in values], None),
    "logit_bias": (_bias, "TOKEN_ID+BIAS"),
    "tensor_split": (_words, "SHARE,..."),
    "devices": (_words, "NAME,..."),
}
_REPEATABLE = ("stop", "logit_bias")


@dataclass(frozen=True)
class Flag:
    """A setting and the option that sets it.

    Attributes:
        part: of the settings; empty for those at the top.
        name: of the field.
        field: pydantic's: type, default, help.

    """

    part: str
    name: str
    field: FieldInfo

    @property
    def path(self) -> str:
        """Place in the settings, such as ``sampling.top_k``."""
        return f"{self.part}.{self.name}".removeprefix(".")

    @property
    def parameter(self) -> str:
        """The name under which click hands it over."""
        return self.path.replace(".", "__")

    @property
    def spellings(self) -> list[str]:
        """As click takes them."""
        names = _SPELLINGS.get(self.name, "--" + self.name.replace("_", "-")).split()
        if self.part == "draft_options":
            names = [name + ("-draft" if name.startswith("--") else "d") for name in names]
        if self.kind is bool:
            names = [f"{name}/--no-{name.removeprefix('--')}" for name in names]
        return names

    @property
    def kind(self) -> Any:
        """As click wants it; text for what pydantic reads."""
        annotation = self.field.annotation
        choices = [one for one in get_args(annotation) if one is not NoneType]
        if get_origin(annotation) is Literal:
            return click.Choice(choices)
        only = choices[0] if len(choices) == 1 else annotation
        if get_origin(only) is Literal:
            return click.Choice(get_args(only))
        return only if only in (bool, int, float) else str

    @property
    def help(self) -> str:
        """The field's docstring, and its default where that is a value."""
        text, default = " ".join((self.field.description or "").split()), self.field.default
        if self.name in _REPEATABLE:
            text += " Can be repeated."
        if default is None or self.field.default_factory or default == ():
            return text
        value = ("off", "on")[default] if isinstance(default, bool) else default
        return f"{text} [{value:g}]" if isinstance(value, float) else f"{text} [{value}]"

    def option(self) -> Callable[[Function], Function]:
        """The decorator that adds it."""
        keywords: dict[str, Any] = {"type": self.kind, "is_flag": self.kind is bool}
        return click.option(
            *self.spellings, self.parameter, **keywords,
            help=self.help,
            default=None,
            multiple=self.name in _REPEATABLE,
            metavar=_READERS[self.name][1] if self.name in _READERS else None,
            shell_complete=VALUES.get(self.path),
        )  # fmt: skip

    def put(self, value: Any, tree: dict[str, Any]) -> None:
        """Set it among plain values, if it was given."""
        if value is None or value == ():
            return
        read = _READERS[self.name][0] if self.name in _READERS else lambda value: value
        place = tree.setdefault(self.part, {}) if self.part else tree
        place[self.name] = read(value)


def _flags() -> Iterator[Flag]:
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (Flag(name, inner, value) for inner, value in kind.model_fields.items())
        else:
            yield Flag("", name, field)


_FLAGS = {flag.parameter: flag for flag in _flags()}


class SectionedCommand(click.Command):
    """Prints its own options first, then those of the settings by part.

    What each option for loading a model does, only commands with all settings say.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, in sections."""
        sections: dict[str, list[click.Parameter]] = {
            title: [] for title in ("Options", *_TITLES.values())
        }
        for option in self.get_params(ctx):
            flag = _FLAGS.get(option.name or "")
            sections[_TITLES[flag.part] if flag else "Options"].append(option)
        is_brief = sum(map(len, sections.values())) - len(sections["Options"]) < len(_FLAGS)
        for title, options in sections.items():
            text = ""
            if title == _TITLES["draft_options"]:
                text = _OF_THE_DRAFT
            elif title == _TITLES["target_options"] and is_brief:
                names = ", ".join(option.opts[-1] for option in options)
                text = f"As in `dspark-gguf run --help`: {names}."
            if options:
                with formatter.section(title):
                    records = [option.get_help_record(ctx) for option in options]
                    if text:
                        _write(text, formatter)
                    else:
                        formatter.write_dl([record for record in records if record])


def _write(text: str, formatter: click.HelpFormatter) -> None:
    """A paragraph in which the names of options stay whole."""
    width = formatter.width - formatter.current_indent
    formatter.write_text("\b\n" + "\n".join(wrap(text, width, break_on_hyphens=False)))


def settings_options(
    *wanted: str, without: Sequence[str] = (), below: Callable[..., dict[str, Any]] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options for settings; the command gets them as `settings`, and `verbose`.

    With ``--show-config`` they are printed, and the command is not called.

    Args:
        wanted: parts of the settings, or single ones such as ``speculation.learn``.
        without: of these parts, what the command has no use for.
        below: called with the command's own arguments: plain values that presets, files and
            options go over.

    """
    flags = [
        flag for flag in _FLAGS.values()
        if (flag.path in wanted or flag.part in wanted) and flag.path not in without
    ]  # fmt: skip

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(config: str | None, show_config: bool, verbose: bool, **own: Any) -> Any:
            from dspark_gguf.settings_files import load_settings

            tree: dict[str, Any] = {}
            for flag in flags:
                flag.put(own.pop(flag.parameter), tree)
            settings = load_settings(config, tree, below(**own) if below else None)
            if show_config:
                click.echo(settings.as_yaml(), nl=False)
                return 0
            return function(settings=settings, verbose=verbose, **own)

        for option in (*(flag.option() for flag in reversed(flags)), debug, *_COMMON):
            command = option(command)
        return command

    return add


debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
_COMMON = (
    click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log."),
    click.option("--show-config", is_flag=True, help="Print the settings that hold, and stop."),
    click.option(
        "--config",
        metavar="NAME|FILE[,...]",
        shell_complete=VALUES["config"],
        help="Presets or YAML files; later ones override earlier ones.",
    ),
)
