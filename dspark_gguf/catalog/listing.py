"""Tables of models: the known pairs, and what is on this machine."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from dspark_gguf.catalog.kinds import NAMES
from dspark_gguf.catalog.local import LocalModel
from dspark_gguf.catalog.pairs import OWN_HEADS, KnownPair
from dspark_gguf.catalog.resolve import find_local
from dspark_gguf.visible import visible

#: A machine sold with 16 GB reports a little less: the firmware keeps some.
_SHARE_REPORTED = 0.9


def machine_gigabytes() -> float:
    """Main memory of this machine in GiB."""
    return psutil.virtual_memory().total / 2**30


def facts(pair: KnownPair, memory: float) -> dict[str, Any]:
    """What is known of a pair, and whether a machine with `memory` GiB has it, as plain values."""
    files = {role: find_local(pair.model(role), role) for role in ("target", "draft")}
    if pair.draft == OWN_HEADS:
        files["draft"] = files["target"]
    return {
        **asdict(pair),
        "gigabytes": {role: pair.gigabytes(role) for role in files},
        "fits": pair.memory == "any" or memory >= _SHARE_REPORTED * int(pair.memory),
        "downloaded": {role: str(path) if path else None for role, path in files.items()},
    }


def pairs_text(rows: Sequence[dict[str, Any]], memory: float) -> str:
    """A table of pairs, and what to do with it."""
    table = as_table(
        ("name", "memory", "fits", "GB", "kind", "licence", "status", "here"),
        (
            (
                row["name"],
                row["memory"] + ("" if row["memory"] == "any" else " GB"),
                "yes" if row["fits"] else "no",
                *(row[name] for name in ("size", "kind", "licence", "status")),
                _here(row["downloaded"]),
            )
            for row in rows
        ),
    )
    return (
        f"{table}\n\nfits: this machine has {memory:.0f} GiB of main memory. unverified: nobody "
        "has checked the repository.\nmore about one: dspark-gguf models NAME; get it: "
        "dspark-gguf pull NAME; use it: dspark-gguf chat -m NAME"
    )


def _here(files: dict[str, str | None]) -> str:
    there = [role for role, path in files.items() if path]
    return "yes" if len(there) == 2 else f"{there[0]} only" if there else "-"


def pair_text(row: dict[str, Any]) -> str:
    """All that is known of one pair."""
    names = ("name", "kind", "status", "target", "draft", "size", "licence", "note")
    lines = {name: row[name] for name in names}
    lines["size"] += " GB (target + draft), about"
    if row["memory"] != "any":
        enough = "this machine has enough" if row["fits"] else "more than this machine has"
        lines["memory"] = f"{row['memory']} GB: {enough}"
    for role, path in row["downloaded"].items():
        lines[f"{role} here"] = path or "no"
    lines["use it"] = f"dspark-gguf chat -m {row['name']}"
    return "\n".join(f"{name:<13}{value}" for name, value in lines.items() if value)


def local_text(models: Sequence[LocalModel], left_out: Sequence[str] = ()) -> str:
    """A table of files, each with what to write after -m, drafts, and files that are neither."""
    drafts = [model for model in models if model.kind != "model"]
    models = [model for model in models if model.kind == "model"]
    text = "Ollama, LM Studio, llama.cpp and the Hugging Face cache have no model here"
    if models:
        table = as_table(
            ("kept by", "GB", "use it with"),
            (
                (model.source, f"{model.size / 1e9:.2f}", f"-m {quote(model.name)}")
                for model in sorted(models, key=lambda model: (model.source, model.name))
            ),
        )
        text = f"{table}\n\nwhich of them can draft for a target: dspark-gguf suggest -m TARGET"
    if drafts:
        rows = (
            (one.source, f"{one.size / 1e9:.2f}", NAMES[one.kind], f"-d {quote(one.name)}")
            for one in sorted(drafts, key=lambda one: (one.source, one.name))
        )
        text += "\n\ndrafts, each for the one target that it was made for:\n"
        text += as_table(("kept by", "GB", "kind", "use it with"), rows)
    if left_out:
        text += "\n\nno models:"
    return "\n  ".join([text, *left_out])


def quote(name: str) -> str:
    """As a shell of this system reads it."""
    return subprocess.list2cmdline([name]) if sys.platform == "win32" else shlex.quote(name)


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Text with the cells of each column below each other, for a pipe as for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for row in rows:
        table.add_row(*map(visible, row))
    # Wide enough for any row: the terminal wraps, a script reads whole lines.
    console = Console(width=100_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
