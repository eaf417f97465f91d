"""Speculative decoding for llama.cpp: two GGUF models, the same answers, nothing to tune.

``from dspark_gguf import Decoder, Limits, Sampling, load_pair``. The names are loaded when they
are first used: importing this package loads neither llama.cpp nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark_gguf.batching import Batcher as Batcher
    from dspark_gguf.catalog import load_pair as load_pair
    from dspark_gguf.config import Limits as Limits
    from dspark_gguf.config import ModelOptions as ModelOptions
    from dspark_gguf.config import Sampling as Sampling
    from dspark_gguf.config import Settings as Settings
    from dspark_gguf.config import Speculation as Speculation
    from dspark_gguf.decoder import Decoder as Decoder
    from dspark_gguf.dropin.llama import DSparkLlama as DSparkLlama
    from dspark_gguf.engine.pair import Pair as Pair
    from dspark_gguf.errors import DSparkError as DSparkError
    from dspark_gguf.records import Round as Round
    from dspark_gguf.tally import Answer as Answer

__version__ = "0.1.0"

_HOMES = {
    "Answer": "tally",
    "Batcher": "batching",
    "DSparkError": "errors",
    "DSparkLlama": "dropin.llama",
    "Decoder": "decoder",
    "Limits": "config",
    "ModelOptions": "config",
    "Pair": "engine.pair",
    "Round": "records",
    "Sampling": "config",
    "Settings": "config",
    "Speculation": "config",
    "load_pair": "catalog",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
