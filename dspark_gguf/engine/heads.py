"""Prediction heads (MTP) and other drafts that read a target's hidden states, by their headers.

A *head* is a block (NextN) behind a model's layers: from a token and the target's state at the
token before it, it guesses the next one. Models have it in their own file, or beside it in a
*sidecar*, a file that only has head blocks. Gemma 4 has an *assistant*, a small model that reads
the target's KV cache. An EAGLE-3 draft reads three of the target's layers instead. llama.cpp ends
the process for a wrong file, so everything is checked here first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dspark_gguf.engine.dflash import (
    ARCHITECTURE,
    BlockDraft,
    TargetDraft,
    why_no_layers,
    why_other_tokens,
)
from dspark_gguf.engine.gguf import Header, Tensor
from dspark_gguf.engine.symbols import TRIED
from dspark_gguf.errors import ModelError

#: What a file is to others: a model of its own, or a draft that needs its target.
Kind: TypeAlias = Literal["model", "block", "mtp", "eagle3", "gemma4-assistant"]
ASSISTANT, EAGLE3 = "gemma4-assistant", "eagle3"

#: Architectures with a graph for one head, in the llama.cpp sources of llama-cpp-python 0.3.36;
#: the head runs again for each further guess.
_ONE_HEAD = frozenset((
    "bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe",
    "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next",
))  # fmt: skip
#: Architectures with a graph for several heads, each of which guesses one token further.
_SEVERAL_HEADS = frozenset(("hy_v3", "mimo2", "step35"))
HAVE_HEADS = _ONE_HEAD | _SEVERAL_HEADS
#: Architectures that do not load, even as plain targets, if counted heads are missing.
_WANT_THEIR_HEADS = frozenset((
    "deepseek4", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next",
))  # fmt: skip

#: Keys that may be lists by layer; llama.cpp wants as many entries as there are blocks.
_BY_LAYER = (
    "attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count",
    "expert_feed_forward_length", "swiglu_clamp_exp", "swiglu_clamp_shexp",
)  # fmt: skip

#: What each kind of draft is called.
_NAMES: dict[Kind, str] = {
    "block": "a block draft",
    "mtp": "a file of prediction heads alone",
    "eagle3": "an EAGLE-3 draft",
    "gemma4-assistant": "a Gemma 4 assistant",
}


def kind_of(header: Header) -> Kind:
    """What a file is, by its header; a model that contains heads is a model."""
    if header.architecture == ARCHITECTURE:
        return "block"
    if header.architecture == EAGLE3:
        return "eagle3"
    if header.architecture == ASSISTANT:
        return "gemma4-assistant"
    has_trunk = any(name.startswith("blk.0.") for name in header.tensors)
    return "mtp" if header.heads and not has_trunk and _are_there(header) else "model"


def _are_there(header: Header) -> bool:
    """Whether the file has the tensors of all heads."""
    numbers = range(header.layers, header.layers + header.heads)
    return all(f"blk.{k}.nextn.eh_proj.weight" in header.tensors for k in numbers)


def are_stripped(header: Header) -> bool:
    """Whether a model counts heads whose tensors it lacks: quantizers and merges drop them."""
    return header.heads > 0 and not _are_there(header)


def why_no_heads(header: Header) -> str:
    """Why the heads in a file cannot be used; empty if they can."""
    name, architecture = header.path.name, header.architecture
    if not header.heads:
        return f"{name} has no prediction heads"
    if not _are_there(header):
        return f"{name} counts prediction heads, but its quantization left them out"
    if architecture not in HAVE_HEADS:
        return f"llama-cpp-python {TRIED} cannot run the prediction heads of {architecture}"
    if header.heads > 1 and architecture in _ONE_HEAD:
        return f"{name} has {header.heads} heads, and llama.cpp runs one of {architecture}"
    if "d2t" in header.tensors:
        return f"the heads of {name} know a part of the vocabulary alone, which llama.cpp lacks"
    return ""


def require_model(header: Header) -> None:
    """Raise a `ModelError` for a draft given as the target: llama.cpp may crash on it."""
    if (kind := kind_of(header)) != "model":
        raise ModelError(
            f"{header.path.name} is {_NAMES[kind]}: it cannot generate text by itself",
            "Give it with -d, and with -m the target that it was made for.",
        )


def overrides_for(header: Header) -> dict[str, int]:
    """Metadata overrides with which a file loads as a model without heads.

    Raises a ModelError if that is impossible: lists by layer cannot be overridden.
    """
    if not are_stripped(header) or header.architecture not in _WANT_THEIR_HEADS:
        return {}
    if any(isinstance(header.get(key), list) for key in _BY_LAYER):
        name, architecture = header.path.name, header.architecture
        raise ModelError(
            f"{name} counts prediction heads, but its quantization left them out, and "
            f"llama.cpp cannot load a {architecture} like that",
            "Use another file of this model, or quantize it again with its heads.",
        )
    keys = {"nextn_predict_layers": 0, "block_count": header.layers}
    return {f"{header.architecture}.{key}": value for key, value in keys.items()}


def head_tensors(header: Header) -> list[Tensor]:
    """The tensors of all heads' blocks."""
    blocks = tuple(f"blk.{header.layers + k}." for k in range(header.heads))
    return [one for one in header.tensors.values() if one.name.startswith(blocks)]


def heads_size(header: Header) -> int:
    """Size of all heads' blocks in bytes."""
    return sum(one.size for one in head_tensors(header))


def states_width(header: Header) -> int:
    """Width of the hidden state that a model passes to its heads, or that a draft expects."""
    width = int(header.get("embedding_length_out", 0) or header.get("embedding_length", 0))
    streams = header.get("hyper_connection.count", 0) if header.architecture == "deepseek4" else 0
    return width * max(int(streams), 1)


def _why_other_states(target: Header, draft: Header) -> str:
    width, wanted = states_width(target), states_width(draft)
    if width != wanted:
        return f"made for a target {wanted} wide, not {width}"
    return why_other_tokens(target, draft)


class HeadDraft(TargetDraft):
    """The prediction heads of a file, or a Gemma 4 assistant, which is used like one head.

    Raises a ModelError if they cannot be used.
    """

    heads: int

    def __init__(self, header: Header) -> None:
        self.header, self.width = header, states_width(header)
        self.is_assistant = header.architecture == ASSISTANT
        self.heads = 0 if self.is_assistant else header.heads  # an assistant is not a head
        self.kind = "Gemma 4 assistant" if self.is_assistant else "MTP"
        if not self.is_assistant and (why := why_no_heads(header)):
            raise ModelError(why, "Use another draft, or none.")

    def why_not_for(self, target: Header) -> str:
        """Why they cannot draft for `target`; empty if they can."""
        wanted = "gemma4" if self.is_assistant else self.header.architecture
        if target.architecture != wanted:
            return f"made for a target of architecture {wanted}, not {target.architecture}"
        return _why_other_states(target, self.header)

    def as_dict(self) -> dict[str, Any]:
        """What ``inspect --json`` prints of it."""
        fits = {"embedding_length": self.width, "tokens": self.header.n_vocab}
        architecture = "gemma4" if self.is_assistant else self.header.architecture
        return {"kind": self.kind, "heads": max(self.heads, 1),
                "fits": {**fits, "architectures": [architecture]}}  # fmt: skip


class EagleDraft(TargetDraft):
    """An EAGLE-3 draft, by its header; a `ModelError` if that is incomplete."""

    kind = "EAGLE-3"

    def __init__(self, header: Header) -> None:
        self.header = header
        self.target_layers: list[int] = header.get("target_layers", [])  # whose inputs it reads
        self.target_width: int = header.get("target_hidden_size", 0)
        self.width: int = header.get("embedding_length", 0)  # its own
        needed = {
            "eagle3.target_layers (three of them)": len(self.target_layers) == 3,
            "eagle3.target_hidden_size": self.target_width,
            "eagle3.embedding_length": self.width,
            "fc.weight": "fc.weight" in header.tensors,
        }
        self._require("EAGLE-3", needed)

    @property
    def borrows(self) -> list[str]:
        """What it borrows from the target, which must then have the same width."""
        parts = {"embeddings": "token_embd.weight", "output head": "output.weight"}
        return [what for what, name in parts.items() if name not in self.header.tensors]

    def why_not_for(self, target: Header) -> str:
        """Why it cannot draft for `target`; empty if it can."""
        width = target.get("embedding_length", 0)
        if width != self.target_width:
            return f"made for a target {self.target_width} wide, not {width}"
        if self.borrows and self.width != width:
            return f"{self.width} wide, it cannot borrow the {self.borrows[0]} of one {width} wide"
        return why_no_layers(target, self.target_layers) or why_other_tokens(target, self.header)

    def as_dict(self) -> dict[str, Any]:
        """What ``inspect --json`` prints of it."""
        return {
            "kind": self.kind,
            "target_layers": self.target_layers,
            "draft_vocabulary": self.draft_vocabulary,
            "borrows": self.borrows,
            "fits": {"embedding_length": self.target_width, "tokens": self.header.n_vocab},
        }


def is_own_draft(target: Header, draft: Path) -> bool:
    """Whether a target with prediction heads and its draft are the same file."""
    there = target.path.exists() and draft.exists()
    same = os.path.samefile(target.path, draft) if there else target.path == draft
    return same and target.heads > 0


def target_draft(header: Header, target: Header | None = None) -> TargetDraft | None:
    """The draft in a file that needs its target; None for a complete model.

    If the `target` is the same file, that means its own heads, if any. Raises a ModelError if the
    draft is incomplete, or the heads cannot be used.
    """
    kind = kind_of(header)
    if kind == "block":
        return BlockDraft(header)
    if kind == "eagle3":
        return EagleDraft(header)
    is_own = target is not None and is_own_draft(target, header.path)
    return HeadDraft(header) if kind != "model" or is_own else None
