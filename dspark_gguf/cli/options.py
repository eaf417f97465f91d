"""The options that commands share: one table from flags to settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspark_gguf.cli.completion import VALUES
from dspark_gguf.errors import UsageError

if TYPE_CHECKING:
    from dspark_gguf.config import Settings

Function = TypeVar("Function", bound=Callable[..., Any])

_CACHE_TYPES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@dataclass(frozen=True)
class Flag:
    """A setting and the option that sets it.

    Attributes:
        path: place in the settings, such as ``sampling.top_k``.
        names: the option's spellings.
        help: one line.
        kind: click's type.
        parse: turns what was typed into the setting's value.
        multiple: whether it can be given several times.

    """

    path: str
    names: str
    help: str
    kind: Any = str
    parse: Callable[[Any], Any] = field(default=lambda value: value)
    multiple: bool = False

    @property
    def parameter(self) -> str:
        """The name under which click hands it over."""
        return self.path.replace(".", "__")


def _layers(value: str) -> int | str:
    return value if value in ("all", "none") else _number(value, int, "all, none or a number")


def _text(value: str) -> str:
    """What was typed is UTF-8, whatever the locale says."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",")]


def _shares(value: str) -> list[float]:
    return [_number(word, float, "numbers with commas between them") for word in _words(value)]


def _bias(values: tuple[str, ...]) -> dict[int, float | str]:
    """llama.cpp's way: ``15043+1``, ``15043-1.5``, ``15043-inf``."""
    out: dict[int, float | str] = {}
    for value in values:
        place = max(value.find("+"), value.find("-", 1))
        wanted = "TOKEN_ID+BIAS or TOKEN_ID-BIAS"
        if place < 1:
            raise UsageError(wanted, repr(value), "correct --logit-bias")
        token = _number(value[:place], int, wanted)
        bias = value[place:]
        out[token] = bias if bias == "-inf" else _number(bias, float, wanted)
    return out


def _number(text: str, kind: Callable[[str], Any], wanted: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(wanted, repr(text), "correct the option") from None


def _choice(words: str) -> click.Choice[str]:
    return click.Choice(words.split())


MODELS = [
    Flag("model", "-m --model", "Target: a GGUF file, org/repo:quant, or a pair of `dspark-gguf "
         "models`, which brings its draft. [the demo pair]"),
    Flag("draft", "-d --draft -md --model-draft",
         "Draft with the target's vocabulary: a GGUF file, org/repo:quant, or a pair's."),
]  # fmt: skip
CHAT = [
    Flag("chat.system", "-sys --system", "System prompt.", parse=_text),
    Flag("chat.chat_template", "--chat-template", "Jinja text or file instead of the GGUF's own."),
    Flag("chat.context_shift", "--context-shift/--no-context-shift",
         "When the context is full, forget the oldest turns instead of stopping.", bool),
    Flag("chat.think", "--think/--no-think", "For templates that can switch thinking.", bool),
]  # fmt: skip
ANSWER = [
    Flag("limits.max_tokens", "-n --max-tokens --predict", "Most tokens of an answer.", int),
    Flag("limits.stop", "--stop", "Text that ends the answer; can be repeated.",
         parse=lambda values: [_text(value) for value in values], multiple=True),
    Flag("sampling.ignore_eos", "--ignore-eos", "Never end by the model's own wish.", bool),
]  # fmt: skip
SAMPLING = [
    Flag("sampling.temperature", "--temp --temperature", "0 is greedy. [0.8]", float),
    Flag("sampling.top_k", "--top-k", "0 is off. [40]", int),
    Flag("sampling.top_p", "--top-p", "1 is off. [0.95]", float),
    Flag("sampling.min_p", "--min-p", "0 is off. [0.05]", float),
    Flag("sampling.typical_p", "--typical --typical-p", "1 is off. [1]", float),
    Flag("sampling.repeat_penalty", "--repeat-penalty", "1 is off. [1]", float),
    Flag("sampling.repeat_last_n", "--repeat-last-n", "Tokens the penalties see. [64]", int),
    Flag("sampling.frequency_penalty", "--frequency-penalty", "0 is off. [0]", float),
    Flag("sampling.presence_penalty", "--presence-penalty", "0 is off. [0]", float),
    Flag("sampling.logit_bias", "--logit-bias", "TOKEN_ID+BIAS or TOKEN_ID-inf; repeatable.",
         parse=_bias, multiple=True),
    Flag("sampling.grammar", "--grammar", "What answers must fit: a file of GBNF, or GBNF."),
    Flag("sampling.json_schema", "-j --json-schema",
         "What answers must fit: a JSON schema, or a file with one."),
    Flag("sampling.seed", "-s --seed", "For the same text again. [random]", int),
]  # fmt: skip
SPECULATION = [
    Flag("speculation.mode", "--spec",
         "auto: as much as pays on this machine; on: by hand; off: plain decoding. [auto]",
         _choice("on off auto")),
    Flag("speculation.rule", "--draft-rule", "How long to draft. [auto]",
         _choice("auto fixed threshold prefix optimal")),
    Flag("speculation.drafter", "--drafter", "Who guesses: the model, or copies. [auto: both]",
         ),
    Flag("speculation.lookup_store", "--lookup-store",
         "Texts to copy from too: see `dspark-gguf lookup build`."),
    Flag("speculation.draft_max", "--draft-max",
         "Most tokens drafted a round. [12; 64 where they are copied]", int),
    Flag("speculation.draft_min_prob", "--draft-min-prob --draft-p-min",
         "By hand: draft only what is at least this probable; 0: always.", float),
    Flag("speculation.learn", "--learn/--no-learn",
         "Remember between runs what this machine and pair taught. [learn]", bool),
    Flag("speculation.acceptance", "--acceptance",
         "ratio, match: lossless. typical, threshold: CHANGE THE OUTPUT. [auto]",
         _choice("auto ratio match typical threshold")),
    Flag("speculation.typical_epsilon", "--typical-epsilon", "Bound of typical. [0.09]", float),
    Flag("speculation.typical_delta", "--typical-delta", "Bound of typical. [0.3]", float),
    Flag("speculation.accept_min_prob", "--accept-min-prob", "Bound of threshold. [0.3]", float),
]  # fmt: skip

#: (setting, short name, long name, help, type, parse); made for the target and for the draft.
_LOADING: list[tuple[str, str, str, str, Any, Callable[[Any], Any]]] = [
    ("n_gpu_layers", "ngl", "gpu-layers", "all, none or a number. [all]", str, _layers),
    ("n_ctx", "c", "ctx-size", "Tokens of context.", int, int),
    ("n_batch", "b", "batch-size", "Tokens read at once.", int, int),
    ("n_ubatch", "ub", "ubatch-size", "Tokens computed at once.", int, int),
    ("threads", "t", "threads", "CPU threads.", int, int),
    ("threads_batch", "tb", "threads-batch", "CPU threads for prompts.", int, int),
    ("flash_attn", "fa", "flash-attn", "Flash attention. [auto]", _choice("auto on off"), str),
    ("cache_type_k", "ctk", "cache-type-k", "Type of cached keys.", _choice(" ".join(_CACHE_TYPES)),
     str),
    ("cache_type_v", "ctv", "cache-type-v", "Type of cached values.",
     _choice(" ".join(_CACHE_TYPES)), str),
    ("swa_full", "", "swa-full", "Keep every token of sliding windows. [yes]", bool, bool),
    ("mmap", "", "mmap", "Map the file into memory.", bool, bool),
    ("mlock", "", "mlock", "Lock the weights in memory.", bool, bool),
    ("extra_buffers", "", "extra-buffers", "AMX and repacked weights. [auto: where they work]",
     _choice("auto on off"), str),
    ("kv_offload", "", "kv-offload", "Cache on the GPU.", bool, bool),
    ("split_mode", "sm", "split-mode", "Over several GPUs.", _choice("layer row none"), str),
    ("main_gpu", "mg", "main-gpu", "The GPU of split mode none.", int, int),
    ("tensor_split", "ts", "tensor-split", "Shares of the GPUs, such as 3,1.", str, _shares),
    ("devices", "dev", "device", "Devices to use, such as CUDA0,CUDA1.", str, _words),
    ("rope_scaling", "", "rope-scaling", "RoPE scaling.", _choice("none linear yarn longrope"),
     str),
    ("rope_freq_base", "", "rope-freq-base", "RoPE base frequency.", float, float),
    ("rope_freq_scale", "", "rope-freq-scale", "RoPE frequency scale.", float, float),
    ("yarn_orig_ctx", "", "yarn-orig-ctx", "YaRN: the training length.", int, int),
    ("yarn_ext_factor", "", "yarn-ext-factor", "YaRN extrapolation.", float, float),
    ("yarn_attn_factor", "", "yarn-attn-factor", "YaRN attention magnitude.", float, float),
    ("yarn_beta_fast", "", "yarn-beta-fast", "YaRN low correction.", float, float),
    ("yarn_beta_slow", "", "yarn-beta-slow", "YaRN high correction.", float, float),
]  # fmt: skip


def _loading(part: str, short_end: str, long_end: str) -> Iterator[Flag]:
    for setting, short, long, text, kind, parse in _LOADING:
        names = f"-{short}{short_end} " if short else ""
        names += f"--{long}{long_end}"
        if kind is bool:
            names += f"/--no-{long}{long_end}"
        yield Flag(f"{part}.{setting}", names, text, kind, parse)


SECTIONS: dict[str, list[Flag]] = {
    "Models": MODELS,
    "Conversation": CHAT,
    "Answer": ANSWER,
    "Sampling": SAMPLING,
    "Speculation": SPECULATION,
    "Loading the target": list(_loading("target_options", "", "")),
    "Loading the draft": list(_loading("draft_options", "d", "-draft")),
}
_FLAGS = {flag.parameter: flag for flags in SECTIONS.values() for flag in flags}


class SectionedCommand(click.Command):
    """Prints its own options first, then the shared ones by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, in sections."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        rows |= {title: [] for title in SECTIONS}
        home = {flag.parameter: title for title, flags in SECTIONS.items() for flag in flags}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                rows[home.get(parameter.name or "", "Options")].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def settings_options(function: Function) -> Function:
    """Add all shared options; the command gets them as keyword arguments for `settings_from`."""
    return chosen_settings(*SECTIONS)(function)


def chosen_settings(*titles: str, without: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Add the shared options of these sections.

    Args:
        titles: keys of `SECTIONS`.
        without: settings of them that the command has no use for.

    """

    def add(function: Function) -> Function:
        flags = [flag for title in titles for flag in SECTIONS[title]]
        for flag in reversed(flags):
            if flag.path not in without:
                function = _option(flag)(function)
        return _common(function)

    return add


def _option(flag: Flag) -> Callable[[Function], Function]:
    keywords: dict[str, Any] = {"help": flag.help, "default": None, "multiple": flag.multiple}
    keywords["shell_complete"] = VALUES.get(flag.path)
    if flag.kind is bool:
        keywords["is_flag"] = True
    else:
        keywords["type"] = flag.kind
    names = " ".join(flag.names.split("/")).split()
    spelled = [flag.names] if "/" in flag.names else names
    return click.option(*spelled, flag.parameter, **keywords)


def _common(function: Function) -> Function:
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks."),
        click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log."),
        click.option("--show-config", is_flag=True, help="Print the effective settings and stop."),
        click.option(
            "--config",
            metavar="NAME|FILE[,...]",
            shell_complete=VALUES["config"],
            help="Presets or YAML files, later ones over earlier ones.",
        ),
    ):
        function = option(function)
    return function


def settings_from(
    config: str | None, options: dict[str, Any], below: dict[str, Any] | None = None
) -> Settings:
    """The settings that a preset or file and the given options make, over those `below`.

    Raises:
        UsageError: an unknown key or a value out of range.

    """
    from dspark_gguf.config import load_settings

    tree: dict[str, Any] = {}
    for parameter, value in options.items():
        if value is None or value == ():
            continue
        flag = _FLAGS[parameter]
        *sections, key = flag.path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = flag.parse(value)
    return load_settings(config, tree, below)
