"""The cache of an EAGLE-3 draft."""

from __future__ import annotations

import numpy as np

from dspark_gguf.engine import symbols
from dspark_gguf.engine.heads import EagleDraft
from dspark_gguf.engine.pairs import Floats
from dspark_gguf.engine.states import StateCache


class EagleCache(StateCache):
    """The memory of an EAGLE-3 draft: its states are features of three of the target's layers.

    Row P of its cache is made of token P + 1 and the fused features of token P.
    """

    kind, is_head, _first = "eagle3", False, 1
    draft: EagleDraft

    def _switch_on(self) -> None:
        set_layer, self._get_layer = symbols.functions(*symbols.LAYERS)
        for layer in self.draft.target_layers:
            set_layer(self._target.pointer, layer, True)

    @property
    def _target_width(self) -> int:
        return len(self.draft.target_layers) * self.draft.target_width

    def _of_target(self, count: int) -> Floats:
        shape = count, self.draft.target_width
        layers = self.draft.target_layers
        parts = (self._get_layer(self._target.pointer, layer) for layer in layers)
        return np.concatenate([np.ctypeslib.as_array(part, shape) for part in parts], axis=1)

    def _states_before(self, start: int, stop: int) -> Floats:
        """The features, fused by the draft's encoder, which keeps nothing of them."""
        features = super()._states_before(start, stop)
        batch = self._batch.at(self.length, (), features, False)
        self.context.encode(batch)
        pointer = self._get_states(self.pointer)
        return np.ctypeslib.as_array(pointer, (len(features), self.draft.width)).copy()
