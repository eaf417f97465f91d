"""The files of a model before anything is loaded: whether they are there, and for what."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.paths import SHARD, shards

#: general.type -> what such a file is, in words.
_TYPES = {
    "mmproj": "a projector of images or sound, which goes with a model",
    "adapter": "an adapter (LoRA), which goes with a model",
    "imatrix": "an importance matrix",
}
#: Text models whose tokens are not written from left to right.
_DIFFUSION = {"dream", "llada", "llada-moe", "rnd1"}
_ENCODERS = {"t5", "t5encoder"}


def other_kind(metadata: Mapping[str, Any]) -> str:
    """What a GGUF is that generates no text, in words; empty where it generates or drafts.

    Args:
        metadata: of its header, or as llama.cpp spells the values.

    """
    arch = str(metadata.get("general.architecture", "unknown"))
    kind = "mmproj" if arch == "clip" else metadata.get("general.type")
    if kind in _TYPES:
        return _TYPES[kind]
    if arch == "dflash":  # its target tells it tokens, and its rows look both ways
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
    """`path`, after a look at its first bytes.

    Raises:
        UsageError: nothing there, or no file.
        ModelError: a file that is no GGUF.

    """
    path = Path(os.path.expanduser(path))
    _require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise _unreadable(path, error) from None
    if head != b"GGUF":
        found = "an empty file" if not head else f"a file that begins with {head!r}"
        raise ModelError(f"a GGUF model in {path}", found, "download or convert the model again")
    _require_all_shards(path)
    return path


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        found = "a link to nothing" if path.is_symlink() else "nothing"
        raise UsageError("a model file", f"{found} at {path}", "check the path") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        raise UsageError("a model file", f"the directory {path}", "name the .gguf file in it")
    if not stat.S_ISREG(mode):  # to open a pipe would wait for its other end
        raise UsageError("a model file", f"the device or pipe {path}", "name a .gguf file")


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or str(error)
    return UsageError(f"a readable {path}", reason, "check the path and its permissions")


def _require_all_shards(path: Path) -> None:
    shard = SHARD.search(path.name)
    if shard is None:
        return
    missing = [each.name for each in shards(path) if not each.exists()]
    if missing:
        raise ModelError(
            f"all {int(shard['count'])} parts of a split model beside {path}",
            f"none of the name {missing[0]}", "download the rest",
        )  # fmt: skip
    if int(shard["number"]) != 1:
        raise UsageError(
            f"the first part of a split model, {shards(path)[0].name}", path.name, "name the first"
        )
