"""What the memory of a model's context takes, read from the header of its file."""

from __future__ import annotations

import llama_cpp

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model

#: Every so many layers of these attend, where the file does not say.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
#: Most snapshots: each costs the state once more, in memory and in time. They may take this share
#: of what the weights take, and always so many bytes.
_MOST_SNAPSHOTS, _SNAPSHOT_SHARE, _SNAPSHOT_BYTES = 16, 1 / 8, 64 * 2**20


class Footprint:
    """Sizes of one model's memory.

    Attributes:
        state_bytes: of a recurrent state; 0 where the model has none, or one of a kind we do not
            know.

    """

    def __init__(self, model: Model) -> None:
        self._model, self._header = model, read_header(model.path)
        self._attention_layers = self._count_attention_layers()
        self.state_bytes = self._size_of_state() if model.is_recurrent else 0

    def cache_bytes(self, n_ctx: int, states: int = 1) -> int:
        """Size of a cache for `n_ctx` tokens, with so many recurrent states.

        An upper bound where layers of attention differ.
        """
        model, all_heads = self._model, max(self._numbers("attention.head_count", 0))
        heads = max(self._numbers("attention.head_count_kv", all_heads))
        width = llama_cpp.llama_model_n_embd(model.pointer) / max(all_heads, 1)
        key, value = (
            float(self._header.get(f"attention.{name}", width))
            for name in ("key_length", "value_length")
        )
        attention = cache_bytes(model.options, heads * self._attention_layers, key, value, n_ctx)
        return attention + states * self.state_bytes

    def snapshots(self, most: int) -> int:
        """How many to ask llama.cpp for, at most `most`: few where the state is large."""
        if not self.state_bytes:
            return 0
        room = max(self._model.size * _SNAPSHOT_SHARE, _SNAPSHOT_BYTES)
        return min(_MOST_SNAPSHOTS, most, int(room / self.state_bytes))

    def _size_of_state(self) -> int:
        """The arithmetic is llama.cpp's (``llama_hparams::n_embd_r``, ``n_embd_s``), in F32."""
        width = int(llama_cpp.llama_model_n_embd(self._model.pointer))
        if head := self._number("wkv.head_size"):
            values = self._number("token_shift_count", 2) * width + width * head
        elif reach := self._number("shortconv.l_cache"):
            values = width * (reach - 1)
        else:
            inner, state = self._number("ssm.inner_size"), self._number("ssm.state_size")
            channels = inner + 2 * self._number("ssm.group_count") * state
            values = (self._number("ssm.conv_kernel") - 1) * channels + state * inner
        # Some hybrids have both in every layer.
        layers = self._model.n_layer - self._attention_layers or self._model.n_layer
        return max(0, 4 * values * layers)

    def _count_attention_layers(self) -> int:
        """Layers that keep keys and values of every token."""
        model = self._model
        if llama_cpp.llama_model_is_recurrent(model.pointer):
            return 0
        if not model.is_recurrent:
            return model.n_layer
        heads = self._numbers("attention.head_count_kv", 0)
        if len(heads) > 1:
            return sum(count > 0 for count in heads)
        usual = _INTERVALS.get(model.architecture, 1)
        return model.n_layer // self._number("full_attention_interval", usual)

    def _number(self, key: str, default: int = 0) -> int:
        return max(self._numbers(key, default))

    def _numbers(self, key: str, default: int) -> list[int]:
        """A number of the header, or one for each layer."""
        value = self._header.get(key, default)
        return [int(one) for one in (value if isinstance(value, list) else [value])]


def cache_bytes(
    options: ModelOptions, heads: int, key_length: float, value_length: float, n_ctx: int
) -> int:
    """Size of an attention cache for `n_ctx` tokens, with so many key-value heads in all layers."""
    key, value = (library.bytes_per_value(t) for t in (options.cache_type_k, options.cache_type_v))
    return int(heads * (key_length * key + value_length * value) * n_ctx)
