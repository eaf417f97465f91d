"""Check the files of a model before anything is loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.paths import SHARD, shards

#: general.type -> what such a file is.
_TYPES = {
    "mmproj": "a projector of images or sound, which goes with a model",
    "adapter": "an adapter (LoRA), which goes with a model",
    "imatrix": "an importance matrix",
}
#: They do not write from left to right.
_DIFFUSION = {"dream", "llada", "llada-moe", "rnd1"}
_ENCODERS = {"t5", "t5encoder"}


def other_kind(metadata: Mapping[str, Any]) -> str:
    """What a GGUF is instead of a model that generates text or drafts; else empty.

    Args:
        metadata: from its header, or from llama.cpp, which spells all values as text.

    """
    arch = str(metadata.get("general.architecture", "unknown"))
    kind = "mmproj" if arch == "clip" else metadata.get("general.type")
    if kind in _TYPES:
        return _TYPES[kind]
    if arch == "dflash":  # it has no tokens, and its attention looks both ways
        return ""
    if arch in _DIFFUSION:
        return f"a diffusion model ({arch})"
    pooled = str(metadata.get(f"{arch}.pooling_type", 0)) != "0"
    two_way = str(metadata.get(f"{arch}.attention.causal", True)).lower() == "false"
    if pooled or two_way or arch in _ENCODERS:
        return f"an embedding or encoder model ({arch})"
    if not {"tokenizer.ggml.model", "tokenizer.ggml.tokens"} & metadata.keys():
        return f"a model without a vocabulary ({arch})"
    return ""


def readable_gguf(path: str | Path) -> Path:
    """`path`, if it begins as a GGUF does and all parts of a split model are there.

    Raises:
        UsageError: no file can be read there.
        ModelError: the file is not a GGUF, or parts are missing.

    """
    path = Path(os.path.expanduser(path))
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a directory", "Name the .gguf file in it.")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise UsageError(f"{path} is a device or a pipe", "Name a .gguf file.")
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        reason = "the link points to nothing" if path.is_symlink() else "no such file"
        raise UsageError(f"cannot read {path}: {reason}", "Check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "Check the path and its permissions."
        raise UsageError(f"cannot read {path}: {reason}", hint) from None
    if head != b"GGUF":
        what = f"it begins with {head.decode('latin-1')!a}" if head else "it is empty"
        raise ModelError(f"{path} is not a GGUF model: {what}", "Download or convert it again.")
    _require_all_shards(path)
    return path


def _require_all_shards(path: Path) -> None:
    shard = SHARD.search(path.name)
    if shard is None:
        return
    parts = shards(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        problem = f"{path} is one of {len(parts)} parts of a model, but {missing[0]} is missing"
        raise ModelError(problem, "Download the missing parts.")
    if int(shard["number"]) != 1:
        raise UsageError(
            f"{path.name} is not the first part of its model", f"Name {parts[0].name}."
        )
