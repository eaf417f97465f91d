"""Every setting there is: checked, printable, read from YAML.

Names follow llama.cpp's where it has the setting. ``Settings`` is the whole; the parts are useful
on their own in Python (``Sampling``, ``Limits``, ``Speculation``, ``ModelOptions``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import shipped

#: Most draft tokens a round can have; the engine reserves rows for as many, plus one.
MAX_DRAFT = 64

#: Bytes of a settings file; the largest useful one has some thousands.
_MOST_YAML = 2**20

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
#: Logits are float32: far beyond this, what is added leaves nothing of them.
Bias = Annotated[float, Field(ge=-1e9, le=1e9)]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelOptions(_Part):
    """How llama.cpp loads one model and its context. 0 or null leaves the choice to us."""

    n_gpu_layers: Annotated[int, Field(ge=-1)] | Literal["all", "none"] | None = None
    """Layers on the GPU; -1 or "all": all of them; null: all where this build can offload."""
    n_ctx: int = Field(default=0, ge=0, le=2**31 - 1)
    """Tokens of context; 0: 8192 or the training length, whichever is less."""
    n_batch: int = Field(default=512, ge=1, le=2**20)
    """Tokens handed to llama.cpp at once while reading a prompt."""
    n_ubatch: int = Field(default=512, ge=1, le=2**20)
    """Tokens computed at once: what the compute buffer is sized for."""
    threads: int = Field(default=0, ge=0, le=512)
    """CPU threads for few tokens; 0: one per physical core."""
    threads_batch: int = Field(default=0, ge=0, le=512)
    """CPU threads for a prompt; 0: as `threads`."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    cache_type_k: CacheType = "f16"
    """Type of the cached keys."""
    cache_type_v: CacheType = "f16"
    """Type of the cached values; a quantized one needs flash attention."""
    swa_full: bool = True
    """Keep every token of sliding-window layers. False: less memory, and an edit of an earlier turn
    reads more of the conversation again."""
    mmap: bool = True
    mlock: bool = False
    extra_buffers: Literal["auto", "on", "off"] = "auto"
    """Weights laid out anew for special code (AMX, repacked); auto: where a trial of this build on
    this machine went well."""
    kv_offload: bool = True
    """Keep the cache on the GPU with the layers that are there."""
    split_mode: Literal["layer", "row", "none"] = "layer"
    main_gpu: int = Field(default=0, ge=0)
    tensor_split: tuple[float, ...] = ()
    """Share of the model for each GPU, such as [3, 1]."""
    devices: tuple[str, ...] = ()
    """Names of the devices to use, such as [CUDA0]; empty: all."""
    rope_scaling: Literal["none", "linear", "yarn", "longrope"] | None = None
    rope_freq_base: float = Field(default=0.0, ge=0)
    rope_freq_scale: float = Field(default=0.0, ge=0)
    yarn_orig_ctx: int = Field(default=0, ge=0)
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_fast: float = -1.0
    yarn_beta_slow: float = -1.0

    @field_validator("tensor_split")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(share < 0 for share in value) or (value and not sum(value)):
            raise ValueError("shares of 0 or more, at least one of them above 0")
        return value


class DraftOptions(ModelOptions):
    """The same for the draft, which keeps its buffers small beside the target's."""

    n_ctx: int = Field(default=0, ge=0, le=2**31 - 1)
    """Tokens of context; 0: the target's, as far as the draft was trained."""
    n_batch: int = Field(default=256, ge=1, le=2**20)
    n_ubatch: int = Field(default=256, ge=1, le=2**20)


class Sampling(_Part):
    """How a token is drawn from the target's logits; llama.cpp's names, order and defaults.

    logit bias, penalties, top-k, typical, top-p, min-p, temperature: in this order.
    """

    temperature: float = Field(default=0.8, ge=0, le=100)
    """0: greedy, always the most probable token."""
    top_k: int = Field(default=40, ge=0)
    """0: off."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """1: off."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """0: off."""
    typical_p: float = Field(default=1.0, gt=0, le=1)
    """1: off."""
    repeat_penalty: float = Field(default=1.0, ge=0.01, le=100)
    """1: off."""
    frequency_penalty: float = Field(default=0.0, ge=-100, le=100)
    presence_penalty: float = Field(default=0.0, ge=-100, le=100)
    repeat_last_n: int = Field(default=64, ge=-1)
    """Tokens that the penalties look back at; -1: all."""
    logit_bias: dict[TokenId, Bias | Literal["-inf"]] = Field(default_factory=dict)
    """Added to the logits of token ids; "-inf" forbids one."""
    ignore_eos: bool = False
    """Forbid the end-of-generation tokens."""
    seed: int | None = Field(default=None, ge=0, le=2**64 - 1)
    """null: a new one each time."""
    grammar: str | None = None
    """What answers must fit: GBNF text, or a file with it."""
    json_schema: str | None = None
    """What answers must fit: a JSON schema, or a file with it."""

    @model_validator(mode="after")
    def _one_grammar(self) -> Sampling:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("a grammar or a json_schema, not both")
        return self


class Limits(_Part):
    """Where an answer ends."""

    max_tokens: int | None = Field(default=None, ge=0)
    """null: until the model stops or the context is full."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("stop strings of at least one character")
        return value


class Speculation(_Part):
    """When to draft, how much, and what counts as right."""

    mode: Literal["on", "off", "auto"] = "auto"
    """auto: as much as pays on this machine, which may be nothing; on: as `draft_min_prob` says;
    off: plain decoding, the draft model does no work."""
    rule: Literal["auto", "fixed", "threshold", "prefix", "optimal"] = "auto"
    """How long to draft. auto: as `draft_min_prob` says where it is given; else `optimal` in mode
    auto and `threshold` in mode on."""
    drafter: str = "auto"
    """model: the draft model; lookup: tokens copied from the conversation, no model needed; or the
    name of another drafter that is installed. auto: both under `optimal`; by hand, the draft model
    where there is one, else lookup."""
    lookup_store: str | None = None
    """Texts to copy from besides the conversation: a file that `lookup build` made."""
    draft_max: int | None = Field(default=None, ge=0, le=MAX_DRAFT)
    """Most tokens drafted in a round; null: 12 guesses of a model, 64 copied ones."""
    draft_min_prob: float | None = Field(default=None, ge=0, le=1)
    """Stop drafting below this top probability of the draft; 0: never. null: as `rule` says, and
    0.6 for `threshold`."""
    learn: bool = True
    """Remember what was measured and learned of a pair between runs."""
    acceptance: Literal["auto", "ratio", "match", "typical", "threshold"] = "auto"
    """ratio and match keep the target's law; typical and threshold change the output. auto: match
    with a seed (the text then does not depend on what was drafted), else the faster of the two."""
    typical_epsilon: float = Field(default=0.09, gt=0, le=1)
    """Medusa's hard bound for `typical`."""
    typical_delta: float = Field(default=0.3, gt=0, le=1)
    """Medusa's entropy-dependent bound for `typical`."""
    accept_min_prob: float = Field(default=0.3, gt=0, le=1)
    """`threshold` accepts a draft token that the target gives at least this probability."""

    @property
    def most_looks(self) -> int:
        """Most tokens that a draft model guesses in a round."""
        return 12 if self.draft_max is None else self.draft_max

    @property
    def most_copies(self) -> int:
        """Most tokens that are copied in a round."""
        return MAX_DRAFT if self.draft_max is None else self.draft_max

    @property
    def lossless(self) -> bool:
        """Whether the output follows the target's own law."""
        return self.acceptance in ("auto", "ratio", "match")

    @property
    def stopping_rule(self) -> Literal["fixed", "threshold", "prefix", "optimal"]:
        """The rule by name."""
        if self.mode == "off":
            return "fixed"
        if self.rule != "auto":
            return self.rule
        if self.draft_min_prob is None:
            return "optimal" if self.mode == "auto" else "threshold"
        return "threshold" if self.draft_min_prob > 0.0 else "fixed"

    @property
    def min_probability(self) -> float:
        """The bound of `threshold`."""
        return 0.6 if self.draft_min_prob is None else self.draft_min_prob


class Chat(_Part):
    """The conversation around the model."""

    system: str | None = None
    """System prompt."""
    chat_template: str | None = None
    """Jinja text or a file with it; null: the one in the GGUF."""
    context_shift: bool = False
    """Forget the oldest turns when the context is full, instead of stopping."""
    think: bool | None = None
    """Thinking on or off, for templates that can switch it; null: as the template has it."""


class Settings(_Part):
    """All of it."""

    model: str | None = None
    """Target: a GGUF file, org/repo:quant on the hub, or a pair's name; null: the demo pair."""
    draft: str | None = None
    """Draft, named in the same ways; null: the pair's, or none."""
    target_options: ModelOptions = ModelOptions()
    draft_options: DraftOptions = DraftOptions()
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    speculation: Speculation = Speculation()
    chat: Chat = Chat()

    def as_yaml(self) -> str:
        """These settings as a file that ``--config`` reads back."""
        text: str = yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )
        return text


Part = TypeVar("Part", bound=_Part)
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
        key = _place(values, first["loc"]) or "the top level"
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(_fields_at(kind, first["loc"])))
            raise UsageError(
                f"keys that exist in {source}", _short(repr(key)), f"use one of: {known}"
            ) from None
        wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if wanted.startswith(("greater", "less")):
            wanted = f"a value {wanted}"
        raise UsageError(
            f"{_short(wanted)} for {_short(key)} in {source}",
            _short(repr(first.get("input"))),
            "correct that value",
        ) from None


def _place(values: Any, places: tuple[int | str, ...]) -> str:
    """The part of an error's place that is in the values: pydantic names types behind it."""
    known = []
    for part in places:
        try:
            values = values[part]
        except (LookupError, TypeError):
            break
        known.append(str(part))
    return ".".join(known)


def _fields_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for name in place[:-1]:
        inner = kind.model_fields[str(name)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)


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
        ValueError: it is none; one line says why.

    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:
        # Besides its own errors, PyYAML lets through what int(), dates and deep nesting raise.
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
        raise UsageError(
            "a preset or a YAML file for --config", repr(name_or_file), f"presets: {presets}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"readable YAML in {path}", str(error), "correct the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(
            f"a mapping of settings in {path}",
            f"a {type(values).__name__}",
            "see `dspark-gguf run --show-config`",
        )
    return values


def _names(config: str | None) -> list[str]:
    if config is None:
        return []
    return [config] if Path(config).expanduser().exists() else config.split(",")


def load_settings(config: str | None, flags: Tree, below: Tree | None = None) -> Settings:
    """Defaults, then `below` (a session's), then the presets or files of `config`, then `flags`.

    Several with commas between them, such as ``code,cuda``: what the text is for, and the machine.
    Of two that set the same key the later one holds.

    Raises:
        UsageError: an unknown key or a value out of range, with its source.

    """
    values: Tree = below or {}
    checked(Settings, values, "the session")
    for name in _names(config):
        tree = read_yaml(name)
        checked(Settings, tree, f"--config {name}")
        values = merged(values, tree)
    return checked(Settings, merged(values, flags), "the options")
