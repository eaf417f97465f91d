"""Kinds of drafts, by their headers, and the cost of a guess relative to a target pass."""

from __future__ import annotations

from typing import Any

from dspark_gguf.config import Speculation
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.heads import HeadDraft, head_tensors, kind_of, target_draft

#: What each kind is called in a sentence.
NAMES = {
    "plain": "a smaller model",
    "foreign": "a model with another tokenizer",
    "dspark": "DSpark",
    "dflash": "DFlash",
    "mtp": "MTP",
    "eagle3": "EAGLE-3",
}
#: Tensors of which a pass reads only a few rows.
_LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight")


def kind_of_draft(header: Header, target: Header | None = None) -> str:
    """A key of `NAMES`; the same file as the target means its own prediction heads."""
    if target is not None and target.path == header.path:
        return "mtp"
    kind = kind_of(header)
    if kind == "block":
        return "dspark" if "markov_w1.weight" in header.tensors else "dflash"
    return {"model": "plain", "eagle3": "eagle3"}.get(kind, "mtp")


def max_guesses(header: Header, target: Header) -> int:
    """Maximum guesses of a round."""
    made_for = target_draft(header, target)
    if isinstance(made_for, BlockDraft):
        return int(made_for.max_drafts)
    if isinstance(made_for, HeadDraft) and made_for.heads > 1:
        return made_for.heads
    return Speculation().max_draft_steps


def share_of_a_pass(header: Header, target: Header) -> float:
    """Bytes that a guess (or a whole block) reads, relative to a pass of the target."""
    kind = kind_of_draft(header, target)
    has_output = "output.weight" in header.tensors
    if kind == "mtp" and header.heads:
        read = _heads_bytes(header) + _output_bytes(header if has_output else target)
    elif kind == "plain" or has_output:
        read = _bytes_read(header)
    else:
        read = _bytes_read(header) + (_output_bytes(target) if kind != "mtp" else 0)
    return read / max(_bytes_read(target), 1)


def _heads_bytes(header: Header) -> float:
    """Bytes that one head reads."""
    return sum(_read(one, header) for one in head_tensors(header)) / max(header.heads, 1)


def _bytes_read(header: Header) -> float:
    """Bytes that a pass of one token reads: not the heads and embeddings, and only some experts."""
    skipped = {*(_LOOKED_UP if "output.weight" in header.tensors else _LOOKED_UP[1:])}
    skipped |= {one.name for one in head_tensors(header)}
    return sum(_read(one, header) for name, one in header.tensors.items() if name not in skipped)


def _read(tensor: Any, header: Header) -> float:
    used, count = header.get("expert_used_count", 0), header.get("expert_count", 0)
    share = used / count if "_exps" in tensor.name and 0 < used < count else 1.0
    return float(tensor.size * share)


def _output_bytes(header: Header) -> int:
    """Bytes of the output matrix, which may be the embeddings."""
    names = ("output.weight", "token_embd.weight")
    return next((header.tensors[name].size for name in names if name in header.tensors), 0)
