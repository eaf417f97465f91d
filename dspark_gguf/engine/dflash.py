"""Block drafts, described by their headers, and the targets they can draft for.

llama.cpp calls the architecture ``dflash``: DFlash (block diffusion over the target's features),
DSpark (DFlash with a Markov head and, often, a confidence head), DFlash2 (with a selector over the
best candidates) and the DSpark drafts of DeepSeek-V4. All read the inputs of certain layers of the
target, and guess a whole block of tokens in one pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dspark_gguf.calibration import CalibrationRecord
from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.symbols import TRIED
from dspark_gguf.errors import ModelError, PairError

ARCHITECTURE = "dflash"
_MASK = "tokenizer.ggml.mask_token_id"
#: Metadata key of the calibration learned in training, a `CalibrationRecord` in JSON.
CALIBRATION = "dspark_gguf.calibration"

#: Architectures whose graphs expose their layer inputs, in the llama.cpp sources of
#: llama-cpp-python 0.3.36. Asking another one ends the process, so it cannot be tried.
EXPOSES_LAYER_INPUTS = frozenset((
    "bailingmoe3", "deepseek4", "gemma4", "gpt-oss", "hunyuan_vl", "lfm2", "lfm2moe", "llama",
    "mimo2", "minimax-01", "minimax-m2", "muse-glimmer", "nanbeige", "nemotron_h",
    "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next", "qwen4exp",
))  # fmt: skip
#: Those that also expose the output of the last layer.
_EXPOSES_OUTPUT = frozenset(("deepseek4", "mimo2", "nemotron_h", "nemotron_h_moe"))


class TargetDraft(ABC):
    """A draft made for one target, whose hidden states it reads; described by its header."""

    header: Header
    kind: str  # its name for the user
    #: Maximum pairs in the pass that makes the first guess; more are read in a pass before it. For
    #: a block draft, its block size.
    rows = 17
    beyond = MAX_DRAFT  # tokens that it may hold beyond the target's
    heads: int | None = None  # prediction heads that its context runs; None: a model of its own

    def cells(self, n_ctx: int, shared: int, n_seq: int) -> int:
        """Cells of its context: `n_ctx` for each of `n_seq` conversations.

        Together they have no more than `shared` tokens.
        """
        return n_ctx if n_seq == 1 else min(shared, n_seq * n_ctx) + n_seq * self.beyond

    @property
    def calibration(self) -> CalibrationRecord | None:
        """The calibration learned in training, if the file has one."""
        try:
            return CalibrationRecord.model_validate_json(self.header.metadata.get(CALIBRATION, ""))
        except ValidationError:
            return None

    def _require(self, what: str, needed: Mapping[str, object]) -> None:
        """Raise a `ModelError` if something is missing from the header."""
        if missing := ", ".join(key for key, there in needed.items() if not there):
            problem = f"{self.header.path} is an incomplete {what} draft, without {missing}"
            raise ModelError(problem, "Convert it again with a recent llama.cpp.")

    @property
    def draft_vocabulary(self) -> int | None:
        """Size of its vocabulary, if that is reduced."""
        reduced = self.header.tensors.get("d2t")
        return reduced.shape[0] if reduced else None

    @abstractmethod
    def why_not_for(self, target: Header) -> str:
        """Why it cannot draft for `target`; empty if it can."""

    def require_target(self, target: Header) -> None:
        """Raise a `PairError` for a target that it was not made for."""
        if why := self.why_not_for(target):
            raise PairError(
                f"the {self.kind} draft {self.header.path.name} cannot draft for "
                f"{target.path.name}: {why}",
                "Use the target that it was made for; `dspark-gguf inspect` describes both.",
            )

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What ``inspect --json`` prints of it."""


def why_no_layers(target: Header, layers: Sequence[int]) -> str:
    """Why a target does not expose the inputs of these layers; empty if it does.

    One past the last layer means the output of the last layer.
    """
    count, last = target.layers, max(layers)
    if last > count:
        return f"made for a target with layer {last}, not {count} layers"
    if target.architecture not in (_EXPOSES_OUTPUT if last == count else EXPOSES_LAYER_INPUTS):
        what = "output of its last layer" if last == count else "inputs of its layers"
        return f"{target.architecture} does not expose the {what} in llama-cpp-python {TRIED}"
    return ""


def why_other_tokens(target: Header, draft: Header) -> str:
    """How their vocabularies differ in size; empty if they do not."""
    if target.n_vocab != draft.n_vocab:
        return f"made for a target of {draft.n_vocab} tokens, not {target.n_vocab}"
    return ""


class BlockDraft(TargetDraft):
    """A draft of architecture ``dflash``, by its header; a `ModelError` if that is incomplete."""

    def __init__(self, header: Header) -> None:
        tensors = header.tensors
        self.header = header
        self.block_size: int = header.get("block_size", 16)  # tokens, the anchor included
        self.rows = self.beyond = self.block_size
        self.target_layers: list[int] = header.get("target_layers", [])  # whose inputs it reads
        self.width: int = header.get("embedding_length", 0)  # the same as the target's
        self.mask_token: int = header.metadata.get(_MASK, -1)  # stands for a token to guess
        #: Whether each row is biased by the token before it.
        self.has_markov_head = markov = "markov_w1.weight" in tensors
        #: Whether it predicts how likely each of its tokens is accepted.
        self.has_confidence_head = markov and "conf_proj.weight" in tensors
        #: Whether it returns a lattice of candidates instead of rows, so many per position.
        self.has_selector = "selector_hidden.weight" in tensors
        self.selector_top_k: int = header.get("selector_top_k", 0)
        #: Whether the anchor's own row is the first guess; else the anchor has none.
        self.anchor_first = not self.has_selector and bool(header.get("sample_from_anchor", markov))
        #: Whether positions of the block attend only to earlier ones.
        self.causal = bool(header.get("attention.causal", False))
        #: Guesses of one block.
        self.max_drafts = self.block_size if self.anchor_first else self.block_size - 1
        self.kind = "DFlash2" if self.has_selector else "DSpark" if markov else "DFlash"
        if header.get("hyper_connection.count"):
            self.kind = "DeepSeek-V4 DSpark"
        needed = {
            "dflash.target_layers": self.target_layers,
            "dflash.embedding_length": self.width,
            "dflash.block_size": self.max_drafts > 0,
            _MASK: self.mask_token >= 0,
            "dflash.selector_top_k": self.selector_top_k or not self.has_selector,
        }
        self._require("block", needed)

    def why_not_for(self, target: Header) -> str:
        """Why it cannot draft for `target`; empty if it can."""
        width = target.get("embedding_length", 0)
        if width != self.width:
            return f"made for a target {self.width} wide, not {width}"
        return why_no_layers(target, self.target_layers) or why_other_tokens(target, self.header)

    def as_dict(self) -> dict[str, Any]:
        """What ``inspect --json`` prints of it."""
        tensors = self.header.tensors
        own = "token_embd.weight" in tensors
        parts = {"embeddings": own, "output head": own or "output.weight" in tensors}
        return {
            "kind": self.kind,
            "block_size": self.block_size,
            "drafts_per_block": self.max_drafts,
            "target_layers": self.target_layers,
            "anchor_first": self.anchor_first,
            "markov_head": self.has_markov_head,
            "confidence_head": self.has_confidence_head,
            "causal": self.causal,
            "sliding_window": self.header.get("attention.sliding_window") or None,
            "draft_vocabulary": self.draft_vocabulary,
            "borrows": [name for name, there in parts.items() if not there],
            "fits": {
                "embedding_length": self.width,
                "least_layers": max(self.target_layers) + 1,
                "tokens": self.header.n_vocab,
                "architectures": sorted(EXPOSES_LAYER_INPUTS),
            },
        }
