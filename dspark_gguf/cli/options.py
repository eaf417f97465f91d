"""Options made from the settings: name, type, default and help are those of `config`'s fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.config import Settings, option_names
from dspark_gguf.errors import UsageError
from dspark_gguf.settings_part import current_value

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
#: The type of an option that names a file; the shells complete it.
FILE = click.Path(path_type=Path)
#: Settings that load a pair, and whether its measurements are kept.
PAIR = ("model", "draft", "target_options", "draft_options", "speculation.learn")
#: Every setting.
ALL = ("model", "draft", *list(_TITLES)[1:])

#: Settings that ``--help`` explains; ``--help-all`` has all of them.
_FREQUENT = {
    "model", "draft", "chat.system", "chat.think", "chat.markdown", "limits.max_tokens",
    "limits.stop", "sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.seed",
    "sampling.json_schema", "speculation.mode", "speculation.draft_max",
    "target_options.n_gpu_layers", "target_options.n_ctx", "target_options.threads",
}  # fmt: skip
#: Key of click's `Context.meta`: whether the help shows all options.
ALL_OPTIONS = "dspark_gguf.all_options"
#: Options that all commands with settings have come last.
_COMMON_PART = "common"
_COMMON_NAMES = {"--config", "--show-config", "--verbose", "--debug", "--help-all", "--help"}
_DRAFT_OPTIONS = (
    "Each option for loading the target exists for the draft too, with d after its short name and "
    "-draft after its long one: -ngld, --gpu-layers-draft. `--show-config` prints their defaults."
)


def _text(value: str) -> str:
    """The command line is read as UTF-8, whatever the locale says."""
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
            hint = "Write TOKEN_ID+BIAS or TOKEN_ID-BIAS."
            raise UsageError(f"cannot read --logit-bias {value!r}", hint) from None
    return out


#: Fields whose values are written differently from YAML: a parser, and the metavar in help.
_READERS: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "system": (_text, None),
    "stop": (lambda values: [_text(value) for value in values], None),
    "logit_bias": (_bias, "TOKEN_ID+BIAS"),
    "tensor_split": (_words, "SHARE,..."),
    "devices": (_words, "NAME,..."),
    "rpc": (_words, "HOST:PORT,..."),
    "override_tensor": (_words, "PATTERN=PLACE,..."),
}
_REPEATABLE = ("stop", "logit_bias")


class _Choice(click.Choice):  # type: ignore[type-arg]  # not generic in click 8.1
    """Also accepts former names of values."""

    def __init__(self, field: str, choices: Sequence[str]) -> None:
        super().__init__(choices)
        self.field = field

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """As the base class, with the value's present name."""
        return super().convert(current_value(self.field, value), param, ctx)


@dataclass(frozen=True)
class Flag:
    """A setting and the option that sets it; `part` is empty for those at the top."""

    part: str
    name: str
    field: FieldInfo

    @property
    def path(self) -> str:
        """Place in the settings, such as ``sampling.top_k``."""
        return f"{self.part}.{self.name}".removeprefix(".")

    @property
    def parameter(self) -> str:
        """The name of the parameter for click."""
        return self.path.replace(".", "__")

    def option(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The decorator that adds this option to a command."""
        kind = self._type()
        names = option_names(self.name, self.part)
        if kind is bool:
            names = [f"{name}/--no-{name.removeprefix('--')}" for name in names]
        return click.option(
            *names, self.parameter, type=kind, is_flag=kind is bool, default=None,
            multiple=self.name in _REPEATABLE, help=self._help(),
            metavar=_READERS.get(self.name, (None, None))[1], shell_complete=VALUES.get(self.path),
        )  # fmt: skip

    def _type(self) -> Any:
        """The type for click; text for types that pydantic parses."""
        kind: Any = self.field.annotation
        kinds = [each for each in get_args(kind) if each is not type(None)]
        if len(kinds) == 1:
            [kind] = kinds
        if get_origin(kind) is Literal:
            return _Choice(self.name, get_args(kind))
        return kind if kind in (bool, int, float) else str

    def _help(self) -> str:
        """The field's docstring, and its default where that is a value."""
        text, default = " ".join((self.field.description or "").split()), self.field.default
        if self.name in _REPEATABLE:
            text += " Can be repeated."
        if default is None or self.field.default_factory or default == ():
            return text
        value = ("off", "on")[default] if isinstance(default, bool) else default
        return f"{text} [{value:g}]" if isinstance(value, float) else f"{text} [{value}]"

    def put(self, value: Any, tree: dict[str, Any]) -> None:
        """Put the option's value into a tree of plain values, if it was given."""
        if value is None or value == ():
            return
        place = tree.setdefault(self.part, {}) if self.part else tree
        place[self.name] = _READERS[self.name][0](value) if self.name in _READERS else value


def _flags() -> Iterator[Flag]:
    for name, field in Settings.model_fields.items():
        if inner := getattr(field.annotation, "model_fields", None):
            yield from (Flag(name, each, value) for each, value in inner.items())
        else:
            yield Flag("", name, field)


_FLAGS = {flag.parameter: flag for flag in _flags()}


class SectionedCommand(click.Command):
    """Prints its own options first, then the frequent ones of the settings by part.

    With `ALL_OPTIONS` all of them, but only commands with all settings explain each option for
    loading a model.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, in sections."""
        titles = ((None, "Options"), *_TITLES.items(), (_COMMON_PART, "General"))
        parts: dict[str | None, list[click.Parameter]] = {part: [] for part, _ in titles}
        shows_all, hides = ctx.meta.get(ALL_OPTIONS, False), False
        for option in self.get_params(ctx):
            flag = _FLAGS.get(option.name or "")
            if flag is None:
                is_common = not _COMMON_NAMES.isdisjoint(option.opts)
                parts[_COMMON_PART if is_common else None].append(option)
            elif shows_all or flag.path in _FREQUENT:
                parts[flag.part].append(option)
            else:
                hides = True
        is_brief = sum(each.name in _FLAGS for each in self.params) < len(_FLAGS)
        for part, title in titles:
            options = parts[part]
            text = _DRAFT_OPTIONS if part == "draft_options" else ""
            if part == "target_options" and is_brief and shows_all:
                names = ", ".join(option.opts[-1] for option in options)
                text = f"As in `dspark-gguf run --help-all`: {names}."
            if not options:
                continue
            with formatter.section(title):
                if text:  # the names of options stay whole
                    width = formatter.width - formatter.current_indent
                    lines = wrap(text, width, break_on_hyphens=False)
                    formatter.write_text("\b\n" + "\n".join(lines))
                else:
                    records = [option.get_help_record(ctx) for option in options]
                    formatter.write_dl([record for record in records if record])
        if hides:
            formatter.write_paragraph()
            formatter.write_text(f"More options: `{ctx.command_path} --help-all`.")


def settings_options(
    *wanted: str, without: Sequence[str] = (), below: Callable[..., dict[str, Any]] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options for settings; the command gets them as `settings`, and `verbose`.

    ``--show-config`` prints the settings instead of calling the command. `wanted` are parts of the
    settings or single ones, such as ``speculation.learn``; `without` is what the command does not
    use of them. `below` returns plain values for the command's own arguments, which presets, files
    and options override.
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

        for option in (*(flag.option() for flag in reversed(flags)), _help_all, debug, *_COMMON):
            command = option(command)
        return command

    return add


def _show_all(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[ALL_OPTIONS] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


_help_all = click.option(
    "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
    help="Show all options and exit.",
)  # fmt: skip
debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
_COMMON = (
    click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log."),
    click.option("--show-config", is_flag=True, help="Print the settings in use, and stop."),
    click.option(
        "--config", metavar="NAME|FILE[,...]", shell_complete=VALUES["config"],
        help="Presets or YAML files; later ones override earlier ones.",
    ),
)  # fmt: skip
