"""How to learn: the numbers of the lab, see docs/training.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to learn. Rates rise for `warm` steps, stay, and fall to 0 in the last part.

    Attributes:
        anchors: blocks in a step, at most `each` of a conversation.
        decay: weight of a row against that of the row before it.
        rate: of learning; the Markov head learns at `head_rate`.
        cooling: share of the time in which the rates fall.
        every: seconds between two evaluations, or steps if `steps` says how many there are.
        apart: steps between two evaluations, at least: on a slow machine a minute shows no gain.
        patience: evaluations without a gain of 0.5 % after which more no longer helps.
        refines: whether the draft was trained before: the loss of the end from the first step on.

    """

    anchors: int = 512
    each: int = 64
    decay: float = 0.8
    rate: float = 1.2e-3
    head_rate: float = 2e-3
    warm: int = 40
    cooling: float = 0.25
    dropout: float = 0.1
    every: float = 60.0
    apart: int = 50
    patience: int = 4
    steps: int | None = None
    seed: int = 0
    refines: bool = False

    @classmethod
    def refining(cls, seed: int) -> Recipe:
        """To go on from a draft: at the full rates it would first forget."""
        return cls(rate=7e-4, head_rate=1.2e-3, seed=seed, refines=True)
