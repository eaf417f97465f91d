"""What the memory of a model's context takes, read from the header of its file."""

from __future__ import annotations

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import Header

#: Architectures in which no layer attends, as llama.cpp lists them (``llm_arch_is_recurrent``).
_NO_ATTENTION = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
#: Every so many layers of these attend, where the file does not say.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
#: Most snapshots: each costs the state once more, in memory and in time. They may take this share
#: of what the weights take, and always so many bytes.
_MOST_SNAPSHOTS, _SNAPSHOT_SHARE, _SNAPSHOT_BYTES = 16, 1 / 8, 64 * 2**20


class Footprint:
    """Sizes of one model's memory.

    Args:
        header: of the model's file.
        options: how it is loaded.

    Attributes:
        weights: bytes.
        layers: of the model, without the output layer.
        state_bytes: of a recurrent state; 0 where the model has none, or one of a kind we do not
            know.

    """

    def __init__(self, header: Header, options: ModelOptions) -> None:
        self._header, self._options = header, options
        self.weights = sum(tensor.size for tensor in header.tensors.values())
        self.layers = self._number("block_count")
        self._width = self._number("embedding_length")
        values = self._values_of_state()
        self._attention_layers = self._count_attention_layers(recurrent=values > 0)
        # Some hybrids have both in every layer.
        self.state_bytes = 4 * values * (self.layers - self._attention_layers or self.layers)

    def cache_bytes(self, n_ctx: int, states: int = 1) -> int:
        """Size of a cache for `n_ctx` tokens, with so many recurrent states.

        An upper bound where layers of attention differ.
        """
        all_heads = max(self._numbers("attention.head_count", 0))
        counts = self._numbers("attention.head_count_kv", all_heads)
        heads = sum(counts) if len(counts) > 1 else counts[0] * self._attention_layers
        width = self._width / max(all_heads, 1)
        total = 0.0
        for key, cache_type in (
            ("key_length", self._options.cache_type_k),
            ("value_length", self._options.cache_type_v),
        ):
            length = float(self._header.get(f"attention.{key}", width))
            total += heads * length * library.bytes_per_value(cache_type)
        return int(total * n_ctx) + states * self.state_bytes

    def snapshots(self, most: int) -> int:
        """How many to ask llama.cpp for, at most `most`: few where the state is large."""
        if not self.state_bytes:
            return 0
        room = max(self.weights * _SNAPSHOT_SHARE, _SNAPSHOT_BYTES)
        return min(_MOST_SNAPSHOTS, most, int(room / self.state_bytes))

    def _values_of_state(self) -> int:
        """Numbers of one layer's state: llama.cpp's arithmetic (``n_embd_r``, ``n_embd_s``)."""
        width = self._width
        if head := self._number("wkv.head_size"):
            return self._number("token_shift_count", 2) * width + width * head
        if reach := self._number("shortconv.l_cache"):
            return width * (reach - 1)
        inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
        channels = inner + 2 * self._number("ssm.group_count") * state
        return max(self._number("ssm.conv_kernel") - 1, 0) * channels + state * inner

    def _count_attention_layers(self, recurrent: bool) -> int:
        """Layers that keep keys and values of every token."""
        architecture = self._header.architecture
        if architecture in _NO_ATTENTION:
            return 0
        if not recurrent:
            return self.layers
        heads = self._numbers("attention.head_count_kv", 0)
        if len(heads) > 1:
            return sum(count > 0 for count in heads)
        usual = _INTERVALS.get(architecture, 1)
        return self.layers // self._number("full_attention_interval", usual)

    def _number(self, key: str, default: int = 0) -> int:
        return max(self._numbers(key, default))

    def _numbers(self, key: str, default: int) -> list[int]:
        """A number of the header, or one for each layer."""
        value = self._header.get(key, default)
        return [int(one) for one in (value if isinstance(value, list) else [value])]
