"""All settings: validated, printable, the one source of the command line's options.

A field gives its option the help, type and default (``cli/options.py``). Names are llama.cpp's
where it has the setting. ``Settings`` is the whole; Python code can use the parts alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dspark_gguf.model_options import DraftOptions as DraftOptions
from dspark_gguf.model_options import ModelOptions as ModelOptions
from dspark_gguf.settings_part import Part

#: Maximum draft tokens of a round; the engine reserves rows for one more.
MAX_DRAFT = 64
#: Maximum rows of a pass that several conversations share.
MAX_ROWS = 128

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
#: Logits are float32: a much larger bias would erase them.
Bias = Annotated[float, Field(ge=-1e9, le=1e9)]
#: Command-line spellings of fields whose options are not just their names.
SPELLINGS = {
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
    "n_cpu_moe": "-ncmoe --n-cpu-moe", "override_tensor": "-ot --override-tensor",
}  # fmt: skip


def option_names(field: str, part: str = "") -> list[str]:
    """All options that set a field of a part, the plainest one last."""
    names = SPELLINGS.get(field, "--" + field.replace("_", "-")).split()
    if part == "draft_options":
        return [name + ("-draft" if name.startswith("--") else "d") for name in names]
    return names


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


#: Text, or a file with it; blank: none.
_Named = Annotated[str | None, BeforeValidator(_blank_is_none)]


class Sampling(Part):
    """How a token is sampled from the target's logits; llama.cpp's names, order and defaults.

    The order: logit bias, penalties, top-k, typical, top-p, min-p, temperature.
    """

    temperature: float = Field(default=0.8, ge=0, le=100)
    """Temperature; 0: greedy, always the most probable token."""
    top_k: int = Field(default=40, ge=0)
    """Keep only the k most probable tokens; 0: off."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Keep only the most probable tokens that add up to this probability; 1: off."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Keep only tokens with at least this share of the best token's probability; 0: off."""
    typical_p: float = Field(default=1.0, gt=0, le=1)
    """Keep only locally typical tokens that add up to this probability; 1: off."""
    repeat_penalty: float = Field(default=1.0, ge=0.01, le=100)
    """Penalty for repeated tokens; 1: off."""
    frequency_penalty: float = Field(default=0.0, ge=-100, le=100)
    """Penalty for every time that a token was used; 0: off."""
    presence_penalty: float = Field(default=0.0, ge=-100, le=100)
    """Penalty for tokens that were used at all; 0: off."""
    repeat_last_n: int = Field(default=64, ge=-1)
    """Number of recent tokens that penalties consider; -1: all."""
    logit_bias: dict[TokenId, Bias | Literal["-inf"]] = Field(default_factory=dict)
    """Number to add to a token's logit; -inf forbids the token."""
    ignore_eos: bool = False
    """Ignore end-of-text tokens."""
    seed: int | None = Field(default=None, ge=0, le=2**64 - 1)
    """Random seed: the same seed gives the same text. Default: a new one each time."""
    grammar: _Named = None
    """Grammar that answers must match: GBNF, or a file with it."""
    json_schema: _Named = None
    """JSON schema that answers must match, or a file with it."""

    @model_validator(mode="after")
    def _one_grammar(self) -> Sampling:
        if self.grammar is not None and self.json_schema is not None:
            raise ValueError("--grammar and --json-schema exclude each other")
        return self


class Limits(Part):
    """Where an answer ends."""

    max_tokens: int | None = Field(default=None, ge=0)
    """Maximum tokens of an answer. Default: until the model stops or the context is full."""
    stop: tuple[str, ...] = ()
    """Text that ends the answer and is not part of it."""

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


class Speculation(Part):
    """When to draft, how much, and which draft tokens to accept."""

    mode: Literal["on", "off", "auto"] = "auto"
    """auto: draft as much as pays on this machine, perhaps nothing; on: draft by a fixed rule; off:
    plain decoding, without loading the draft."""
    rule: Literal["auto", "fixed", "threshold", "prefix", "optimal"] = "auto"
    """Rule for the length of a draft. auto: optimal; threshold if speculation is on or a minimum
    probability is given; fixed if that is 0."""
    drafter: str = "auto"
    """Source of drafts: model (the draft, of any kind), lookup (copies from the conversation, needs
    no draft), or an installed drafter. auto: model and lookup with the optimal rule; otherwise
    model, or lookup if there is no draft."""
    lookup_store: _Named = None
    """More text for lookup to copy from: a file made by `dspark-gguf lookup build`."""
    draft_max: int | None = Field(default=None, ge=0, le=MAX_DRAFT)
    """Maximum draft tokens per round. Default: 12 from a draft model, 64 from lookup."""
    draft_min_prob: float | None = Field(default=None, ge=0, le=1)
    """Stop drafting when the draft's best token is less probable than this; 0: never. Default: 0.6
    for the threshold rule."""
    learn: bool = True
    """Keep measured costs and acceptance of a pair between runs."""
    acceptance: Literal["match", "rejection", "typical", "threshold"] = "match"
    """Rule for accepting draft tokens. match and rejection are lossless; with match, a seed also
    gives the same text whatever is drafted. typical and threshold CHANGE THE OUTPUT."""
    typical_epsilon: float = Field(default=0.09, gt=0, le=1)
    """typical: hard bound, as in Medusa."""
    typical_delta: float = Field(default=0.3, gt=0, le=1)
    """typical: entropy-dependent bound, as in Medusa."""
    accept_min_prob: float = Field(default=0.3, gt=0, le=1)
    """threshold: accept draft tokens with at least this probability under the target."""

    @property
    def is_default(self) -> bool:
        """Whether drafting is left to the scheduler, as without options."""
        return self.model_copy(update={"learn": True}) == Speculation()

    @property
    def max_draft_steps(self) -> int:
        """Maximum tokens from a draft model in a round."""
        return 12 if self.draft_max is None else self.draft_max

    @property
    def max_lookup_tokens(self) -> int:
        """Maximum tokens from prompt lookup in a round."""
        return MAX_DRAFT if self.draft_max is None else self.draft_max

    @property
    def lossless(self) -> bool:
        """Whether the output follows the target's own distribution."""
        return self.acceptance in ("match", "rejection")

    @property
    def stopping_rule(self) -> Literal["fixed", "threshold", "prefix", "optimal"]:
        """The name of the rule in use."""
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


class Chat(Part):
    """The conversation around the model."""

    system: str | None = None
    """System prompt."""
    chat_template: str | None = None
    """Chat template: Jinja, or a file with it. Default: the one in the GGUF."""
    context_shift: bool = False
    """When the context is full, forget the oldest turns instead of stopping."""
    markdown: bool = False
    """Render Markdown in answers on a terminal."""
    think: bool | None = None
    """Turn thinking on or off, if the template can. Default: the template's own choice."""


class Settings(Part):
    """All settings."""

    model: str | None = None
    """Target: a GGUF file, org/repo:quant, or a name from `dspark-gguf models`, which also gives a
    draft. Default: the demo pair."""
    draft: str | None = None
    """Draft, ideally of the target's family, named in the same ways; mtp: the prediction heads in
    the target's own file; none: no draft. Default: the pair's draft, or one that is found inside
    the target, beside it, or in another program's folder."""
    target_options: ModelOptions = ModelOptions()
    draft_options: DraftOptions = DraftOptions()
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    speculation: Speculation = Speculation()
    chat: Chat = Chat()

    def as_yaml(self) -> str:
        """These settings as a file that ``--config`` reads back."""
        import yaml  # here, because `--help` does not need it

        values = self.model_dump(mode="json")
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
