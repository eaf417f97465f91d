"""A draft model that has the target's tokens under other ids: a table instead of the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from dspark_gguf.draft.base import Kit, drafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.sampling import Row

if TYPE_CHECKING:
    from dspark_gguf.engine.token_map import TokenMap


@drafter("mapped")
class MappedDrafter(ModelDrafter):
    """Drafts with a model whose tokens are the target's under other ids."""

    name, about = "mapped", "a draft model with other token ids"
    map: TokenMap

    @classmethod
    def of(cls, kit: Kit) -> Self:
        """As a `ModelDrafter`."""
        made = super().of(kit)
        made.map = kit.draft().token_map
        return made

    @cached_property
    def _row(self) -> npt.NDArray[np.float32]:
        return np.full(self._n_vocab, -np.inf, np.float32)

    def _read_as(self, tokens: Sequence[int]) -> Sequence[int]:
        ids: list[int] = self.map.draft_ids[np.asarray(tokens, np.int64)].tolist()
        return ids

    def _said_as(self, row: Row) -> Row:
        self._row[self.map.known] = np.asarray(row)[self.map.draft_ids[self.map.known]]
        return self._row
