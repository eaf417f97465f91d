"""Tables of models: the known pairs, and what is on this machine."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil

from dspark_gguf.catalog.local import LocalModel
from dspark_gguf.catalog.pairs import KnownPair
from dspark_gguf.catalog.resolve import is_here

#: A machine sold with 16 GB tells of a little less: the firmware keeps some.
_SHARE_TOLD = 0.9
_GB, _GIB = 1e9, 1024**3


def machine_gigabytes() -> float:
    """Main memory of this machine in GiB."""
    return psutil.virtual_memory().total / _GIB


def facts(pair: KnownPair, memory: float) -> dict[str, Any]:
    """A pair, and how it stands here; plain values.

    Args:
        pair: one of the list.
        memory: of this machine, in GiB.

    """
    files = {role: is_here(pair.model(role), role) for role in ("target", "draft")}
    fits = pair.memory == "any" or memory >= _SHARE_TOLD * int(pair.memory)
    return {
        **asdict(pair),
        "gigabytes": {role: pair.gigabytes(role) for role in files},
        "fits": fits,
        "downloaded": {role: str(path) if path else None for role, path in files.items()},
    }


def pairs_text(rows: Sequence[dict[str, Any]], memory: float) -> str:
    """A table of pairs, and what to do with it."""
    heads = ("name", "memory", "fits", "GB", "kind", "licence", "status", "here")
    table = [
        (
            row["name"],
            row["memory"] + ("" if row["memory"] == "any" else " GB"),
            "yes" if row["fits"] else "no",
            row["size"],
            row["kind"],
            row["licence"],
            row["status"],
            _here(row["downloaded"]),
        )
        for row in rows
    ]
    return "\n".join(
        [
            *aligned([heads, *table]),
            "",
            f"fits: this machine has {memory:.0f} GiB of main memory. unverified: a repository "
            "that nobody has checked.",
            "more of one: dspark-gguf models NAME; get it: dspark-gguf pull NAME; use it: "
            "dspark-gguf chat -m NAME",
        ]
    )


def _here(files: dict[str, str | None]) -> str:
    there = [role for role, path in files.items() if path]
    return {0: "-", 1: f"{there[0]} only" if there else "", 2: "yes"}[len(there)]


def pair_text(row: dict[str, Any]) -> str:
    """All that is known of one pair."""
    names = ("name", "kind", "status", "target", "draft", "size", "licence", "note")
    lines = {name: row[name] for name in names}
    lines["size"] += " GB (target + draft), about"
    if row["memory"] != "any":
        enough = "enough is here" if row["fits"] else "more than this machine has"
        lines["memory"] = f"{row['memory']} GB: {enough}"
    for role, path in row["downloaded"].items():
        lines[f"{role} here"] = path or "no"
    lines["use it"] = f"dspark-gguf chat -m {row['name']}"
    return "\n".join(f"{name:<13}{value}" for name, value in lines.items() if value)


def local_text(models: Sequence[LocalModel], left_out: Sequence[str] = ()) -> str:
    """A table of files, each with what to write after -m, and what is none of them."""
    others = ["", "no models:", *(f"  {line}" for line in left_out)] if left_out else []
    if not models:
        none = (
            "no model found where Ollama, LM Studio, llama.cpp and the Hugging Face cache keep "
            "theirs"
        )
        return "\n".join([none, *others])
    rows = [
        (model.source, f"{model.size / _GB:.2f}", f"-m {quoted(model.name)}")
        for model in sorted(models, key=lambda model: (model.source, model.name))
    ]
    return "\n".join(
        [
            *aligned([("kept by", "GB", "use it with"), *rows]),
            "",
            "which of them fits a target as a draft: dspark-gguf suggest -m TARGET",
            *others,
        ]
    )


def quoted(name: str) -> str:
    """As a shell of this system reads it."""
    return subprocess.list2cmdline([name]) if sys.platform == "win32" else shlex.quote(name)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of each column under each other."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
