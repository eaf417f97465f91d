"""Texts as a recording has them, and the rounds that a rule makes of them."""

from __future__ import annotations

import numpy as np

from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.replay import replay


def rounds(rule, text, costs):
    """Rounds of a replay, in order."""
    seen, watch = [], rule.observe

    def observe(round):
        seen.append(round)
        watch(round)

    rule.observe = observe
    replay([text], costs, rule)
    return seen


def text(alive, positions=300, score=None):
    """A text where every chain survives `alive` tokens of 8, and says so if `score` is None."""
    survived = np.tile(np.arange(8) < alive, (positions, 1))
    gaps = np.where(survived, 5.0, 0.0) if score is None else np.full(survived.shape, score)
    return Chains("all", np.full(survived.shape, 0.5, np.float32), survived, gaps.astype("f4"))
