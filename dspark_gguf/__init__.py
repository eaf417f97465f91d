"""Speculative decoding for llama.cpp: two GGUF models, the same answers, nothing to tune.

``from dspark_gguf import Decoder, Limits, Sampling, load_pair``. The names are loaded when they
are first used: importing this package loads neither llama.cpp nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspark_gguf.catalog import load_pair
    from dspark_gguf.config import Limits, ModelOptions, Sampling, Settings, Speculation
    from dspark_gguf.decoder import Decoder
    from dspark_gguf.engine.pair import Pair
    from dspark_gguf.errors import DSparkError
    from dspark_gguf.plugin import DSparkLlama
    from dspark_gguf.records import Round
    from dspark_gguf.tally import Answer

__version__ = "0.1.0"

_HOMES = {
    "Answer": "tally",
    "DSparkError": "errors",
    "DSparkLlama": "plugin",
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

__all__ = [
    "Answer",
    "DSparkError",
    "DSparkLlama",
    "Decoder",
    "Limits",
    "ModelOptions",
    "Pair",
    "Round",
    "Sampling",
    "Settings",
    "Speculation",
    "load_pair",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
