"""Tables of models: the known pairs, and files on this machine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import psutil

from dspark_gguf.catalog.local import LocalModel, find_local
from dspark_gguf.catalog.pairs import OWN_HEADS, KnownPair
from dspark_gguf.engine.kinds import NAMES
from dspark_gguf.visible import text_table

#: A machine sold with 16 GB reports a little less, because the firmware keeps some.
_SHARE_REPORTED = 0.9
#: Publishers that make these models, or are known for quantizing them.
_KNOWN = ("Qwen/", "unsloth/", "bartowski/", "ggml-org/", "google/", "meta-llama/", "mistralai/")
#: Billions of parameters, in all and active for a token, in the name of a mixture of experts.
_EXPERTS = re.compile(r"(\d+(?:\.\d+)?)b-a(\d+(?:\.\d+)?)b")


def machine_gigabytes() -> float:
    """Main memory of this machine in GiB."""
    return psutil.virtual_memory().total / 2**30


def facts(pair: KnownPair, memory: float, seconds_per_byte: float | None = None) -> dict[str, Any]:
    """Facts about a pair as plain values, and whether it fits a machine with `memory` GiB.

    A pass mostly reads weights, so the target's speed follows from `seconds_per_byte`.
    """
    files = {role: find_local(pair.model(role), role) for role in ("target", "draft")}
    if pair.draft == OWN_HEADS:
        files["draft"] = files["target"]
    return {
        **asdict(pair),
        "tokens_per_second": _speed(pair, seconds_per_byte),
        "gigabytes": {role: pair.gigabytes(role) for role in files},
        "fits": pair.memory == "any" or memory >= _SHARE_REPORTED * int(pair.memory),
        "downloaded": {role: str(path) if path else None for role, path in files.items()},
    }


def _speed(pair: KnownPair, seconds_per_byte: float | None) -> float | None:
    """Tokens a second of plain decoding; a mixture of experts reads only its active experts."""
    size, experts = pair.gigabytes("target"), _EXPERTS.search(pair.target.lower())
    if size is None or not seconds_per_byte:
        return None
    share = float(experts[2]) / float(experts[1]) if experts else 1.0
    return round(1.0 / (size * 1e9 * share * seconds_per_byte), 2)


def recommended(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of two pairs for this machine: the largest one that fits, and a faster one.

    Both come from known publishers, with a draft that needs no preparation.
    """
    good = [
        row
        for row in rows
        if row["fits"] and row["status"] != "unverified" and row["kind"] == "plain"
        and all(row[role].startswith(_KNOWN) for role in ("target", "draft"))
    ]  # fmt: skip
    by_size = sorted(good, key=lambda row: -(row["gigabytes"]["target"] or 0.0))
    return [row["name"] for row in by_size[:2]]


def pairs_text(rows: Sequence[dict[str, Any]], memory: float) -> str:
    """A table for each size of machine, the recommended pairs, and what the words mean."""
    best = recommended(rows)
    rows = sorted(rows, key=lambda row: 0 if row["memory"] == "any" else int(row["memory"]))
    table = text_table(
        ("", "pair", "GB", "tok/s here", "draft", "checked", "on disk"),
        (
            (
                "*" * (row["name"] in best),
                row["name"],
                row["size"],
                "?" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:.2g}",
                *(row[name] for name in ("kind", "status")),
                _here(row["downloaded"]),
            )
            for row in rows
        ),
        right=False,
    )
    head, *lines = table.splitlines()
    parts = [head]
    for need, group in groupby(zip(lines, rows, strict=True), lambda pair: pair[1]["memory"]):
        some = list(group)
        title = "for any machine" if need == "any" else f"for machines with {need} GB"
        enough = "" if some[0][1]["fits"] else f" (this one has {memory:.0f})"
        parts += ["", f"{title}{enough}:", *(line for line, _ in some)]
    use = "".join(f"\n  dspark-gguf chat -m {name}" for name in best)
    advice = f"* recommended for this machine:{use}\n" if best else ""
    return "\n".join([*parts, "", advice + _LEGEND])


def _here(files: dict[str, str | None]) -> str:
    there = [role for role, path in files.items() if path]
    return "yes" if len(there) == 2 else f"{there[0]} only" if there else "-"


_LEGEND = """\
tok/s here: of the target alone, about, from how fast this machine reads weights;
  how much faster a draft makes it here: dspark-gguf suggest -m PAIR, once it is here
draft: plain is a small model of the same family; the others were made for this target
checked: tested with this program; seen: others use this pair, in public; unverified:
  nobody checked that the repository holds what its name says
GB: of the target and the draft; ?: not known
more about one, with its licence: dspark-gguf models NAME; get it: dspark-gguf pull NAME"""


def pair_text(row: dict[str, Any]) -> str:
    """Everything that is known of one pair."""
    names = ("name", "kind", "status", "target", "draft", "size", "licence", "note")
    lines = {name: row[name] for name in names}
    lines["size"] += " GB (target + draft), about"
    if row["tokens_per_second"] is not None:
        speed = f"{row['tokens_per_second']:.2g} tokens a second of the target alone, about"
        lines["speed here"] = speed
    if row["memory"] != "any":
        enough = "this machine has enough" if row["fits"] else "more than this machine has"
        lines["memory"] = f"{row['memory']} GB: {enough}"
    for role, path in row["downloaded"].items():
        lines[f"{role} here"] = path or "no"
    lines["use it"] = f"dspark-gguf chat -m {row['name']}"
    return "\n".join(f"{name:<13}{value}" for name, value in lines.items() if value)


def local_text(models: Sequence[LocalModel], left_out: Sequence[str] = ()) -> str:
    """A table of files, each with what to write after -m, drafts, and files that are neither."""
    targets, drafts = list[list[str]](), list[list[str]]()
    for one in sorted(models, key=lambda model: (model.source, model.name)):
        facts, name = [one.source, f"{one.size / 1e9:.2f}"], quote(one.name)
        if one.kind == "model":
            targets.append([*facts, f"-m {name}"])
        else:
            drafts.append([*facts, NAMES[one.kind], f"-d {name}"])
    text = "Ollama, LM Studio, llama.cpp and the Hugging Face cache have no model here"
    if targets:
        text = text_table(("kept by", "GB", "use it with"), targets, right=False)
        text += "\n\nwhich of them can draft for a target: dspark-gguf suggest -m TARGET"
    if drafts:
        text += "\n\ndrafts, each for the one target that it was made for:\n"
        text += text_table(("kept by", "GB", "kind", "use it with"), drafts, right=False)
    if left_out:
        text += "\n\nno models:"
    return "\n  ".join([text, *left_out])


def quote(name: str) -> str:
    """A name, quoted for the shells of this system."""
    return subprocess.list2cmdline([name]) if sys.platform == "win32" else shlex.quote(name)
