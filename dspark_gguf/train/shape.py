"""The dimensions of a draft, derived from the target's header."""

from __future__ import annotations

from dataclasses import dataclass

from dspark_gguf.engine.dflash import ARCHITECTURE, EXPOSES_LAYER_INPUTS, BlockDraft
from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.heads import require_model
from dspark_gguf.errors import PairError

#: Architectures of targets for which a test trains a draft from end to end.
TRIED = ("llama", "qwen3", "lfm2", "qwen35", "qwen3next")
#: Number of target layers whose inputs a draft reads.
_FEATURES = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a draft.

    Attributes:
        target_layers: the target layers whose inputs it reads.
        source_layers: the target layers that its own layers are initialised from.
        block: guesses in one pass.
        rank: rank of the Markov head.
        vocabulary: maximum size of its vocabulary.

    """

    n_vocab: int
    width: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    context: int
    epsilon: float
    rope_base: float
    target_layers: tuple[int, ...]
    source_layers: tuple[int, ...]
    block: int = 5
    rank: int = 64
    vocabulary: int = 8192

    @property
    def layers(self) -> int:
        """Layers of the draft."""
        return len(self.source_layers)

    @property
    def token_bytes(self) -> int:
        """Bytes on disk per recorded token: layer inputs in float16 and 16 likely tokens."""
        return 2 * len(self.target_layers) * self.width + 16 * (4 + 2) + 4

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        inner, w = self.heads * self.head, self.width
        layer = 2 * w * inner + 2 * w * self.kv_heads * self.head + 3 * w * self.feed_forward
        head = min(self.vocabulary, self.n_vocab) * (w + self.rank) + self.n_vocab * self.rank
        return self.layers * layer + len(self.target_layers) * w * w + head

    @classmethod
    def of_target(cls, target: Header) -> Shape:
        """Two late layers of the target, with a K/V head for each query head.

        A `PairError` if no draft can be trained for the target's architecture.
        """
        require_trainable(target)
        count, width = target.layers, target.get("embedding_length")
        heads = _one(target.get("attention.head_count"))
        head = target.get("attention.key_length") or width // heads
        first = min(2, count - 1)
        step = max(1.0, (count - 1 - first) / (_FEATURES - 1))
        places = {min(count - 1, round(first + step * k)) for k in range(_FEATURES)}
        if first == count - 1:
            places.add(0)
        return cls(
            n_vocab=target.n_vocab,
            width=width,
            heads=heads,
            kv_heads=heads,
            head=head,
            feed_forward=_one(target.get("feed_forward_length") or 3 * width),
            context=target.get("context_length", 4096),
            epsilon=target.get("attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=target.get("rope.freq_base", 10_000.0),
            target_layers=tuple(sorted(places)),
            source_layers=(count - 1 - max(1, count // 6), count - 1),
        )

    @classmethod
    def of_draft(cls, draft: Header, target: Header) -> Shape:
        """The shape of a draft file to continue from; a `PairError` if that is not possible."""
        refused = PairError(
            f"{draft.path.name} is not a draft that `train` can continue from",
            "Give a DSpark draft without embeddings of its own, or leave --from out.",
        )
        if draft.architecture != ARCHITECTURE:
            raise refused
        block = BlockDraft(draft)
        block.require_target(target)
        own = draft.get("attention.sliding_window") or "token_embd.weight" in draft.tensors
        if block.kind != "DSpark" or not block.anchor_first or block.causal or own:
            raise refused
        count = draft.get("block_count")
        heads, kv_heads = (_one(draft.get(f"attention.head_count{k}")) for k in ("", "_kv"))
        markov, reduced = draft.tensors["markov_w1.weight"], draft.tensors.get("d2t")
        return cls(
            n_vocab=draft.n_vocab,
            width=block.width,
            heads=heads,
            kv_heads=kv_heads,
            head=draft.get("attention.key_length") or block.width // heads,
            feed_forward=_one(draft.get("feed_forward_length")),
            context=draft.get("context_length"),
            epsilon=draft.get("attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=draft.get("rope.freq_base", 10_000.0),
            target_layers=tuple(block.target_layers),
            source_layers=tuple(range(count)),
            block=block.block_size,
            rank=markov.shape[0],
            vocabulary=reduced.shape[0] if reduced else draft.n_vocab,
        )


def require_trainable(target: Header) -> None:
    """Refuse a draft given as the target, and architectures that no draft can be trained for."""
    require_model(target)
    if target.architecture in TRIED:
        return
    what = "has not been tried yet"
    if target.architecture not in EXPOSES_LAYER_INPUTS:
        what = "does not expose its layer inputs"
    raise PairError(
        f"cannot train a draft for {target.path.name}: {target.architecture} {what}",
        f"Use a target of architecture {', '.join(TRIED[:-1])} or {TRIED[-1]}.",
    )


def _one(value: int | list[int]) -> int:
    """A number, or the maximum if it is given per layer."""
    return max(value) if isinstance(value, list) else value
