"""What a block draft is, read from its header, and which target it fits.

llama.cpp calls the architecture ``dflash``: DFlash (block diffusion over the target's features),
DSpark (DFlash with a Markov head and, often, a confidence head), DFlash2 (with a selector over the
best candidates) and the DSpark drafts of DeepSeek-V4. All read what enters certain layers of the
target, and guess a whole block of tokens in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.symbols import TRIED
from dspark_gguf.errors import ModelError, PairError

ARCHITECTURE = "dflash"

#: Targets whose graphs hand out what enters their layers, in the sources of llama.cpp that come
#: with llama-cpp-python 0.3.36. Asking another one ends the process, so nobody can just try.
HANDS_OUT_LAYERS = frozenset((
    "bailingmoe3", "deepseek4", "gemma4", "gpt-oss", "hunyuan_vl", "lfm2", "lfm2moe", "llama",
    "mimo2", "minimax-01", "minimax-m2", "muse-glimmer", "nanbeige", "nemotron_h",
    "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next", "qwen4exp",
))  # fmt: skip
#: Of these, the ones that also hand out what leaves the last layer.
_HANDS_OUT_OUTPUT = frozenset(("deepseek4", "mimo2", "nemotron_h", "nemotron_h_moe"))


@dataclass(frozen=True)
class BlockDraft:
    """A draft of architecture ``dflash``, by its header."""

    header: Header

    @classmethod
    def of(cls, header: Header) -> BlockDraft | None:
        """The block draft in a file, or None where it is another kind of model.

        Raises:
            ModelError: a block draft that lacks what drafting needs.

        """
        if header.architecture != ARCHITECTURE:
            return None
        draft = cls(header)
        draft._require_complete()
        return draft

    @cached_property
    def kind(self) -> str:
        """Its name in the literature."""
        if self.header.get("hyper_connection.count", 0):
            return "DeepSeek-V4 DSpark"
        if self.has_selector:
            return "DFlash2"
        return "DSpark" if self.has_markov_head else "DFlash"

    @property
    def block_size(self) -> int:
        """Tokens of a block, the anchor included."""
        return int(self.header.get("block_size", 16))

    @property
    def target_layers(self) -> list[int]:
        """Layers of the target whose inputs it reads."""
        return [int(layer) for layer in self.header.get("target_layers", [])]

    @property
    def width(self) -> int:
        """Its embedding length, which is the target's."""
        return int(self.header.get("embedding_length", 0))

    @property
    def has_markov_head(self) -> bool:
        """Whether each row is biased by the token before it."""
        return "markov_w1.weight" in self.header.tensors

    @property
    def has_confidence_head(self) -> bool:
        """Whether it says how sure it is of each token."""
        return self.has_markov_head and "conf_proj.weight" in self.header.tensors

    @property
    def has_selector(self) -> bool:
        """Whether a lattice of candidates stands in for rows of logits."""
        return "selector_hidden.weight" in self.header.tensors

    @property
    def selector_top_k(self) -> int:
        """Candidates of each position in the lattice."""
        return int(self.header.get("selector_top_k", 0))

    @property
    def anchor_first(self) -> bool:
        """Whether the anchor's own row is the first guess; else it is a bonus token without one."""
        if self.has_selector:
            return False
        return bool(self.header.get("sample_from_anchor", self.has_markov_head))

    @property
    def causal(self) -> bool:
        """Whether a position of the block sees only those before it."""
        return bool(self.header.get("attention.causal", False))

    @property
    def most_drafts(self) -> int:
        """Guesses of one block."""
        return self.block_size if self.anchor_first else self.block_size - 1

    @property
    def mask_token(self) -> int:
        """Stands where a token is to be guessed."""
        return int(self.header.metadata["tokenizer.ggml.mask_token_id"])

    @property
    def draft_vocabulary(self) -> int | None:
        """Tokens that it can propose, where these are not all of the vocabulary."""
        reduced = self.header.tensors.get("d2t")
        return None if reduced is None else reduced.shape[0]

    @property
    def borrows(self) -> list[str]:
        """What it takes from the target's file."""
        tensors = self.header.tensors
        own = "token_embd.weight" in tensors
        parts = {"embeddings": own, "output head": own or "output.weight" in tensors}
        return [name for name, there in parts.items() if not there]

    def require_target(self, target: Header) -> None:
        """Refuse a target that it was not made for.

        Raises:
            PairError: width, layers or vocabulary differ, or the target hands out no layers.

        """
        name = self.header.path.name

        def refuse(needed: str, got: str) -> PairError:
            return PairError(
                f"{needed} (for the {self.kind} draft {name})",
                f"{target.path.name}, {got}",
                "give it the target that it was made for; `dspark-gguf inspect` shows both",
            )

        width, layers = target.get("embedding_length", 0), target.get("block_count", 0)
        if width != self.width:
            raise refuse(f"a target {self.width} wide", f"{width} wide")
        if max(self.target_layers) > layers:
            raise refuse(f"a target with layer {max(self.target_layers)}", f"{layers} layers")
        last = max(self.target_layers) == layers
        if target.architecture not in (_HANDS_OUT_OUTPUT if last else HANDS_OUT_LAYERS):
            what = f"layer {layers}, its output" if last else "its layers' inputs"
            raise refuse(
                f"an architecture that hands out {what}",
                f"{target.architecture}, which does not in llama-cpp-python {TRIED}",
            )
        if target.n_vocab != self.header.n_vocab:
            raise refuse(f"a target of {self.header.n_vocab} tokens", f"{target.n_vocab}")

    def as_dict(self) -> dict[str, Any]:
        """What ``inspect --json`` prints of it."""
        return {
            "kind": self.kind,
            "block_size": self.block_size,
            "drafts_per_block": self.most_drafts,
            "target_layers": self.target_layers,
            "anchor_first": self.anchor_first,
            "markov_head": self.has_markov_head,
            "confidence_head": self.has_confidence_head,
            "causal": self.causal,
            "sliding_window": int(self.header.get("attention.sliding_window", 0)) or None,
            "draft_vocabulary": self.draft_vocabulary,
            "borrows": self.borrows,
            "fits": {
                "embedding_length": self.width,
                "least_layers": max(self.target_layers) + 1,
                "tokens": self.header.n_vocab,
                "architectures": sorted(HANDS_OUT_LAYERS),
            },
        }

    def _require_complete(self) -> None:
        missing = [
            key
            for key, there in (
                ("dflash.target_layers", self.target_layers),
                ("dflash.embedding_length", self.width),
                ("dflash.block_size", self.most_drafts > 0),
                ("tokenizer.ggml.mask_token_id",
                 "tokenizer.ggml.mask_token_id" in self.header.metadata),
                ("dflash.selector_top_k", self.selector_top_k or not self.has_selector),
            )
            if not there
        ]  # fmt: skip
        if missing:
            raise ModelError(
                f"a complete block draft in {self.header.path}",
                f"one without {', '.join(missing)}",
                "convert it again with a recent llama.cpp",
            )
