"""An EAGLE-3 draft as drafter: guesses go on from features of three of the target's layers."""

from __future__ import annotations

from dspark_gguf.draft.base import drafter
from dspark_gguf.draft.mtp import HeadDrafter


@drafter("eagle3")
class EagleDrafter(HeadDrafter):
    """Drafts as a prediction head does; what it goes on from is the cache's affair."""

    name, about = "eagle3", "the EAGLE-3 draft"
