"""Hyperparameters, from the experiments in docs/training.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters. Learning rates warm up for `warm` steps, stay, and cool down to 0.

    Attributes:
        anchors: blocks in a step, at most `each` per conversation.
        decay: weight of a row relative to the row before it.
        rate: learning rate; `head_rate` is that of the Markov head.
        cooling: share of the time spent on the cooldown.
        every: seconds between two evaluations, or steps if `steps` is given.
        apart: minimum steps between two evaluations: on a slow machine a minute shows no gain.
        patience: evaluations without a gain of 0.5 % before the cooldown starts.
        refines: whether to use the final loss from the first step on: the draft was trained before.

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
        """To continue from a draft, which would forget at the full learning rates."""
        return cls(rate=7e-4, head_rate=1.2e-3, seed=seed, refines=True)
