"""How llama.cpp loads a model: the settings of the target, and of the draft."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dspark_gguf.settings_part import Part

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
#: How a number of layers may be written.
_COUNTS = {
    "n_gpu_layers": ("all, none or a number", r"all|none|-?\d+"),
    "n_cpu_moe": ("all or a number", r"all|\d+"),
}


class ModelOptions(Part):
    """How llama.cpp loads one model and its context."""

    n_gpu_layers: Annotated[int, Field(ge=-1)] | Literal["all", "none"] | None = None
    """Layers on the GPU: a number, all (or -1) or none. Default: all, if this build can use it."""
    n_ctx: int = Field(default=0, ge=0, le=2**31 - 1)
    """Context size in tokens; 0: 8192, or the training length if that is less."""
    n_batch: int = Field(default=512, ge=1, le=2**20)
    """Prompt tokens in one call of llama.cpp."""
    n_ubatch: int = Field(default=512, ge=1, le=2**20)
    """Tokens computed at once; the compute buffer grows with it."""
    threads: int = Field(default=0, ge=0, le=512)
    """CPU threads for generating; 0: one per physical core."""
    threads_batch: int = Field(default=0, ge=0, le=512)
    """CPU threads for reading prompts; 0: as for generating."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    """Flash attention."""
    cache_type_k: CacheType = "f16"
    """Type of the keys in the KV cache."""
    cache_type_v: CacheType = "f16"
    """Type of the values in the KV cache; a quantized one needs flash attention."""
    swa_full: bool = True
    """Keep every token in sliding-window layers. Off saves memory, but after an edit of an earlier
    turn, more of the conversation must be read again."""
    mmap: bool = True
    """Map the file into memory instead of reading it."""
    mlock: bool = False
    """Lock the weights in memory."""
    extra_buffers: Literal["auto", "on", "off"] = "auto"
    """Repack weights for faster code, such as AMX; auto: if a trial on this machine succeeds."""
    kv_offload: bool = True
    """Keep the KV cache of layers on the GPU there too."""
    split_mode: Literal["layer", "row", "none"] = "layer"
    """How to split the model over several GPUs."""
    main_gpu: int = Field(default=0, ge=0)
    """The GPU to use in split mode none."""
    tensor_split: tuple[float, ...] = ()
    """Share of the model for each GPU, such as 3,1."""
    devices: tuple[str, ...] = ()
    """Devices to use, such as CUDA0,CUDA1. Default: all."""
    n_cpu_moe: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Layers, counted from the first, whose experts stay in main memory: a number, or all."""
    override_tensor: tuple[str, ...] = ()
    """Where to put tensors whose names match a regular expression, such as exps=CPU."""
    rpc: tuple[str, ...] = ()
    """llama.cpp RPC servers to compute on as well, such as 10.0.0.2:50052; trusted networks only.
    Their devices are called RPC0, RPC1 and so on."""
    rope_scaling: Literal["none", "linear", "yarn", "longrope"] | None = None
    """How to scale RoPE. Default: as the model says."""
    rope_freq_base: float = Field(default=0.0, ge=0)
    """Base frequency of RoPE; 0: the model's."""
    rope_freq_scale: float = Field(default=0.0, ge=0)
    """Frequency scale of RoPE; 0: the model's."""
    yarn_orig_ctx: int = Field(default=0, ge=0)
    """YaRN: the training length; 0: the model's."""
    yarn_ext_factor: float = -1.0
    """YaRN: extrapolation mix; -1: the model's."""
    yarn_attn_factor: float = -1.0
    """YaRN: attention magnitude; -1: the model's."""
    yarn_beta_fast: float = -1.0
    """YaRN: low correction; -1: the model's."""
    yarn_beta_slow: float = -1.0
    """YaRN: high correction; -1: the model's."""

    @field_validator("n_gpu_layers", "n_cpu_moe", mode="before")
    @classmethod
    def _layers(cls, value: Any, info: ValidationInfo) -> Any:
        words, pattern = _COUNTS[info.field_name or ""]
        if isinstance(value, str) and not re.fullmatch(pattern, value.strip()):
            raise ValueError(words)
        return value

    @field_validator("override_tensor")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            pattern, _, place = one.rpartition("=")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"a regular expression ({pattern}: {error})") from None
            if not (pattern and place):
                raise ValueError("PATTERN=PLACE")
        return value

    @field_validator("tensor_split")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(share < 0 for share in value) or (value and not sum(value)):
            raise ValueError("shares of 0 or more, at least one of them above 0")
        return value


class DraftOptions(ModelOptions):
    """The same for the draft, with smaller buffers."""

    n_ctx: int = Field(default=0, ge=0, le=2**31 - 1)
    """Context size in tokens; 0: the target's, or the training length if that is less."""
    n_batch: int = Field(default=256, ge=1, le=2**20)
    n_ubatch: int = Field(default=256, ge=1, le=2**20)
