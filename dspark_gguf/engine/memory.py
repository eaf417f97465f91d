"""How much memory models and their caches need, and whether it is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_gguf.config import MAX_DRAFT, MAX_ROWS, ModelOptions
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.gguf import Header
from dspark_gguf.engine.library import Device, bytes_per_value
from dspark_gguf.engine.placing import MAIN_MEMORY, place_of, placements
from dspark_gguf.errors import ResourceError
from dspark_gguf.paths import GIB

DEFAULT_CONTEXT = 8192  # tokens
#: Share of the memory that is left for compute buffers and other programs.
_SPARE = 0.05
#: Architectures without attention, as llama.cpp lists them (``llm_arch_is_recurrent``).
_NO_ATTENTION = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
#: One in so many layers has attention, unless the file says otherwise.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
#: Each snapshot costs another copy of the state, in memory and time. Together they may take this
#: share of the size of the weights, or so many bytes if that is more.
_FEW_SNAPSHOTS = 4
_MAX_SNAPSHOTS, _SNAPSHOT_SHARE, _SNAPSHOT_BYTES = 16, 1 / 8, 64 * 2**20


class Footprint:
    """Memory that a model needs when loaded with `options`, computed from its header.

    With `heads`, that of a context for so many prediction heads instead of the model's layers.
    """

    def __init__(self, header: Header, options: ModelOptions, heads: int | None = None) -> None:
        self._header, self._options = header, options
        self.weights = sum(tensor.size for tensor in header.tensors.values())  # bytes
        self.layers = header.layers  # without the output layer and prediction heads
        self._width = self._number("embedding_length")
        self._blocks = slice(0, self.layers)  # the blocks in use
        values = self._values_of_state() if heads is None else 0
        if heads is not None:
            self._blocks, self.layers = slice(self.layers, self.layers + heads), heads
        self._attention_layers = self._count_attention_layers(recurrent=values > 0)
        # 0 without a recurrent state, or for an unknown kind. Some hybrids have both in each layer.
        self.state_bytes = 4 * values * self._count_recurrent_layers()

    def cache_bytes(self, n_ctx: int, states: int = 1) -> int:
        """Size of a KV cache of `n_ctx` tokens, with so many recurrent states.

        An upper bound for models whose attention layers differ.
        """
        all_heads = max(self._numbers("attention.head_count", 0))
        counts = self._numbers("attention.head_count_kv", all_heads)
        counts = counts[self._blocks] if len(counts) > 1 else counts * self._attention_layers
        width = self._width / max(all_heads, 1)
        get, options = self._header.get, self._options
        key = get("attention.key_length", width) * bytes_per_value(options.cache_type_k)
        value = get("attention.value_length", width) * bytes_per_value(options.cache_type_v)
        return int(sum(counts) * (key + value) * n_ctx) + states * self.state_bytes

    def buffer_bytes(self, n_ctx: int, rows: int) -> int:
        """Approximate upper bound of the compute buffer, with so many rows of logits.

        Measured on dense models: a micro-batch holds 3 feed-forward and 4 embedding vectors per
        token, and the attention mask; the logits are held twice.
        """
        options, floats = self._options, 4
        experts = self._number("expert_used_count")
        hidden = max(
            self._number("feed_forward_length"),
            experts * self._number("expert_feed_forward_length"),
        )
        tokens = min(options.n_ubatch, n_ctx)
        logits = rows * self._header.n_vocab * floats
        scores = 0  # flash attention does not store them
        if options.flash_attn == "off":
            scores = tokens * n_ctx * floats * max(self._numbers("attention.head_count", 0))
        masks = 1 + bool(self._number("attention.sliding_window"))
        activations = tokens * (3 * hidden + 4 * self._width) * floats
        return masks * floats * tokens * n_ctx + scores + activations + 2 * logits

    def weights_in(self, place: str) -> int:
        """Bytes of the tensors that the options assign to a place, such as main memory."""
        wanted = placements(self._options)
        return sum(
            tensor.size
            for tensor in self._header.tensors.values()
            if wanted and place_of(tensor.name, wanted) == place
        )

    def snapshots(self, most: int, n_seq: int = 1) -> int:
        """Snapshots to request from llama.cpp, at most `most`; fewer if the states are large."""
        if not self.state_bytes:
            return 0
        return min(_MAX_SNAPSHOTS, most, int(self._state_room / (self.state_bytes * n_seq)))

    def conversations(self, most: int) -> int:
        """How many fit into memory at once, at most `most`, with some snapshots each."""
        if not self.state_bytes:
            return most
        return max(1, min(most, int(self._state_room / (_FEW_SNAPSHOTS * self.state_bytes))))

    @property
    def _state_room(self) -> float:  # bytes
        return max(self.weights * _SNAPSHOT_SHARE, _SNAPSHOT_BYTES)

    def _values_of_state(self) -> int:
        """Numbers in the state of one layer, as llama.cpp computes it (``n_embd_r, n_embd_s``)."""
        width = self._width
        if head := self._number("wkv.head_size"):
            return self._number("token_shift_count", 2) * width + width * head
        if reach := self._number("shortconv.l_cache"):
            return width * (reach - 1)
        reach = self._number("ssm.conv_kernel")
        if head := self._number("kda.head_dim"):
            inner = self._number("attention.head_count") * head
            return 3 * ((reach or 4) - 1) * inner + head * inner
        inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
        channels = inner + 2 * self._number("ssm.group_count") * state
        return max(reach - 1, 0) * channels + state * inner

    def _count_attention_layers(self, recurrent: bool) -> int:
        architecture = self._header.architecture
        if architecture in _NO_ATTENTION:
            return 0
        if not recurrent:
            return self.layers
        heads = self._numbers("attention.head_count_kv", 0)
        if len(heads) > 1:
            return sum(count > 0 for count in heads[self._blocks])
        interval = self._number("full_attention_interval") or _INTERVALS.get(architecture, 1)
        return self.layers // interval

    def _count_recurrent_layers(self) -> int:
        heads, inner = (
            self._numbers(key, 1)[self._blocks]
            for key in ("attention.head_count_kv", "feed_forward_length")
        )
        if len(heads) == len(inner) > 1 and 0 in inner:  # Nemotron-H: each layer has one kind only
            return sum(not any(each) for each in zip(heads, inner, strict=True))
        return self.layers - self._attention_layers or self.layers

    def _number(self, key: str, default: int = 0) -> int:
        return max(self._numbers(key, default))

    def _numbers(self, key: str, default: int) -> list[int]:
        """A number in the header, or one for each layer."""
        value = self._header.get(key, default)
        return [int(one) for one in (value if isinstance(value, list) else [value])] or [default]


@dataclass(frozen=True, slots=True)
class Need:
    """How much memory a model needs, and where."""

    weights: int  # bytes
    cache: int  # bytes, snapshots included
    n_ctx: int  # tokens that fit into the cache
    layers: int  # including the output layer
    on_gpu: int  # layers on a GPU
    buffers: int = 0  # bytes of compute buffers
    kept: int = 0  # bytes of weights that stay in main memory in any case

    @property
    def total(self) -> int:
        """Total bytes."""
        return self.weights + self.cache + self.buffers

    def at(self, on_gpu: bool) -> int:
        """Bytes on the GPU, or in main memory."""
        there = int((self.total - self.kept) * self.on_gpu / max(self.layers, 1))
        return there if on_gpu else self.total - there

    def layers_that_fit(self, free: int) -> int:
        """Number of layers whose weights and cache fit into `free` bytes."""
        each = (self.total - self.kept) / max(self.layers, 1)
        return min(self.layers, int(free * (1.0 - _SPARE) / max(each, 1.0)))


def need_of(
    header: Header,
    options: ModelOptions,
    n_ctx: int,
    is_draft: bool = False,
    heads: int | None = None,
    is_loaded: bool = False,
    n_seq: int = 1,
    rows: int = 1,
) -> Need:
    """Memory that the model in this file needs with a context of `n_ctx` tokens.

    `heads` is as in `Footprint`; with `is_loaded` the weights need no more memory. The context is
    for at most `n_seq` conversations, for each of which a draft has `rows` of logits.
    """
    footprint, states = Footprint(header, options, heads), 1  # a draft keeps no snapshots
    if not is_draft:
        n_seq = footprint.conversations(min(n_seq, MAX_ROWS))
        states, rows = 1 + footprint.snapshots(MAX_DRAFT, n_seq), MAX_DRAFT + 1
    rows = rows_of(rows, n_seq)
    cache = footprint.cache_bytes(n_ctx, n_seq * states)
    layers = footprint.layers + 1
    on_gpu = min(wanted_gpu_layers(options), layers)
    buffers = footprint.buffer_bytes(n_ctx, rows)
    kept = 0 if is_loaded else footprint.weights_in(MAIN_MEMORY)
    weights = 0 if is_loaded else footprint.weights
    return Need(weights, cache, n_ctx, layers, on_gpu, buffers, kept)


def rows_of(rows: int, n_seq: int) -> int:
    """Maximum rows of a pass of `n_seq` conversations, if one alone has at most `rows`."""
    return min(n_seq * rows, max(rows, MAX_ROWS))


def default_context(options: ModelOptions, train: int) -> int:
    """Context size of a target that was trained with `train` tokens."""
    return options.n_ctx or min(DEFAULT_CONTEXT, train)


def wanted_gpu_layers(options: ModelOptions) -> int:
    """Layers to put on a GPU: 2**30 means all, 0 if this build cannot offload.

    By default all of them, unless a trial pass on the GPU failed.
    """
    wanted = options.n_gpu_layers
    if not library.can_offload(options.rpc) or wanted == "none":
        return 0
    if wanted is None:  # a trial says nothing about other machines
        wanted = "all" if options.rpc or trial.gpu_runs() else 0
    return 2**30 if wanted in ("all", -1) else int(wanted)


def room(devices: Sequence[Device], options: ModelOptions, on_gpu: bool) -> int | None:
    """Free bytes of the devices for a model; None if there is no such device."""
    kinds = ("GPU", "integrated GPU") if on_gpu else ("CPU",)
    chosen = options.devices if on_gpu else ()
    free = [
        device.free
        for device in devices
        if device.kind in kinds and (not chosen or device.name in chosen)
    ]
    return sum(free) or None


def require_memory(needed: int, what: str) -> None:
    """Raise a `ResourceError` if the system would swap or kill this process."""
    free = library.free_memory()
    if needed > free:
        raise ResourceError(
            f"not enough memory for {what}: {needed / GIB:.1f} GiB needed, "
            f"{free / GIB:.1f} GiB free",
            "Use a smaller model or context (--ctx-size), or a smaller cache type.",
        )


def looks_like_memory(log: str) -> bool:
    """Whether llama.cpp's log reports a failed allocation."""
    words = ("allocat", "out of memory", "bad_alloc", "cannot mmap")
    return any(word in log.lower() for word in words)
