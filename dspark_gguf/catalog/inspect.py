"""Describe a GGUF by its header alone, as text or as JSON for scripts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dspark_gguf.engine.dflash import EXPOSES_LAYER_INPUTS
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.heads import Kind, kind_of, target_draft, why_no_heads
from dspark_gguf.engine.quantize import FILE_TYPES
from dspark_gguf.paths import size_on_disk

#: Kinds of files as scripts read them.
_KINDS: dict[Kind, str] = {
    "model": "model", "block": "block draft", "mtp": "prediction heads", "eagle3": "EAGLE-3 draft",
    "gemma4-assistant": "Gemma 4 assistant",
}  # fmt: skip
_FILE_TYPES = {number: name for name, number in FILE_TYPES.items()}
_SHAPE = {
    "width": "embedding_length", "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv", "experts": "expert_count", "context": "context_length",
    "sliding_window": "attention.sliding_window",
}  # fmt: skip


def inspect(path: str | Path) -> dict[str, Any]:
    """Facts about a file as plain values, without its weights; sizes in bytes.

    Only a draft that needs its target has ``draft``, only a model with prediction heads ``heads``,
    and ``shape`` has only what the file says. Errors are as for `read_header`.
    """
    header = read_header(path)
    metadata = header.metadata
    types = Counter[str]()
    for tensor in header.tensors.values():
        types[tensor.type] += tensor.parameters
    shape = {"layers": header.layers, "prediction_heads": header.heads}
    shape |= {name: header.get(key) for name, key in _SHAPE.items()}
    draft, kind = target_draft(header), kind_of(header)
    facts: dict[str, Any] = {
        "file": str(header.path),
        "size": size_on_disk(header.path),
        "gguf_version": header.version,
        "architecture": header.architecture,
        "name": metadata.get("general.name"),
        "license": metadata.get("general.license"),
        "kind": _KINDS[kind] if draft else header.other_kind or _KINDS[kind],
        "parameters": header.parameters,
        "quantization": {
            "file_type": _FILE_TYPES.get(metadata.get("general.file_type", -1)),
            "parameters_by_type": dict(types.most_common()),
        },
        "shape": {name: value for name, value in shape.items() if value not in (None, 0)},
        "tokenizer": {
            "model": metadata.get("tokenizer.ggml.model"),
            "pre": metadata.get("tokenizer.ggml.pre"),
            "tokens": header.n_vocab,
            "bos": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos": metadata.get("tokenizer.ggml.eos_token_id"),
        },
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    if draft:
        facts["draft"] = draft.as_dict()
    else:
        facts["hands_out_layers"] = header.architecture in EXPOSES_LAYER_INPUTS
        if header.heads:
            facts["heads"] = {"count": header.heads, "problem": why_no_heads(header)}
    return facts


def as_text(facts: dict[str, Any]) -> str:
    """The same for people: one fact per line."""
    types, total = facts["quantization"]["parameters_by_type"], max(facts["parameters"], 1)
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in types.items())
    tokenizer, template = facts["tokenizer"], facts["chat_template"]
    lines = {
        "file": f"{facts['file']} ({facts['size'] / 2**20:.0f} MiB, GGUF {facts['gguf_version']})",
        "name": facts["name"],
        "license": facts["license"],
        "architecture": facts["architecture"],
        "generates text": None
        if facts["kind"] in _KINDS.values()
        else f"no, it is {facts['kind']}",
        "parameters": _rounded(facts["parameters"]),
        "quantization": f"{facts['quantization']['file_type'] or 'mixed'}: {shares}",
        **{name.replace("_", " "): value for name, value in facts["shape"].items()},
        "tokenizer": f"{tokenizer['model']} ({tokenizer['pre']}), {tokenizer['tokens']:,} tokens",
        "chat template": f"{len(template):,} characters" if (template or "").strip() else "none",
    }
    if "draft" in facts:
        lines |= _draft_lines(facts["draft"])
    else:
        yes = "yes" if facts["hands_out_layers"] else "no"
        lines["hands out layers"] = f"{yes} (DSpark, DFlash and EAGLE-3 drafts read them)"
    if "heads" in facts:
        heads = facts["heads"]
        lines["prediction heads"] = f"{heads['count']}: " + (
            heads["problem"] or "used as its draft"
        )
    found = {name: str(value) for name, value in lines.items() if value is not None}
    return "\n".join(f"{name:<18}{' '.join(value.splitlines())}" for name, value in found.items())


def _rounded(parameters: int) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= size:
            return f"{parameters / size:.3g} {name}"
    return f"{parameters:,}"


def _draft_lines(draft: dict[str, Any]) -> dict[str, str]:
    fits, reduced = draft["fits"], draft.get("draft_vocabulary")
    layers = "of an architecture that hands out its layers"
    wide = f"a target {fits['embedding_length']} wide"
    if "heads" in draft:
        count = f"{draft['heads']} head{'s' * (draft['heads'] > 1)}"
        architectures = " or ".join(fits["architectures"])
        return {
            "draft": f"{draft['kind']}, {count} over the target's states",
            "fits": f"{wide} with {fits['tokens']:,} tokens, of architecture {architectures}",
        }
    lines = {
        "proposes": "all tokens" if reduced is None else f"{reduced:,} tokens",
        "borrows": ", ".join(draft["borrows"]) or "nothing of the target",
        "reads": f"the target's layers {', '.join(map(str, draft['target_layers']))}",
    }
    if "block_size" not in draft:
        return {
            "draft": f"{draft['kind']}, one guess after the other",
            **lines,
            "fits": f"{wide} with {fits['tokens']:,} tokens, {layers}",
        }
    layout = "the anchor's row is the first guess" if draft["anchor_first"] else "a bonus anchor"
    heads = [name for name in ("markov", "confidence") if draft[f"{name}_head"]]
    return {
        "draft": f"{draft['kind']}, {draft['drafts_per_block']} guesses a block of "
        f"{draft['block_size']} ({layout})",
        "draft heads": ", ".join(heads) or "none",
        "attention": ("causal" if draft["causal"] else "both ways") + " inside a block",
        **lines,
        "fits": f"{wide} with at least {fits['least_layers']} layers and {fits['tokens']:,} "
        f"tokens, {layers}",
    }
