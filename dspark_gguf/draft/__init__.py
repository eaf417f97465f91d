"""Drafters, one per file, one protocol (``base.py``); ``make_drafter`` chooses."""

from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.engine.pair import Pair
from dspark_gguf.sampling import Sampler, margin, top_probability
from dspark_gguf.schedule import StoppingRule, faster_acceptance, make_stopping_rule

__all__ = ["Drafter", "ModelDrafter", "NoDrafter", "make_drafter", "scheduled"]

#: The name under which a drafter's scores are remembered.
NAME = "model"


def make_drafter(pair: Pair, sampling: Sampling, speculation: Speculation) -> Drafter:
    """The drafter for these models; `NoDrafter` where speculation is off or impossible."""
    cache = None if speculation.mode == "off" else pair.draft_cache()
    if cache is None:
        return NoDrafter()
    # Only `ratio` needs the draft to draw; the other rules accept its best guess more often.
    draws = speculation.acceptance in ("auto", "ratio")
    own = sampling if draws else sampling.model_copy(update={"temperature": 0.0})
    sampler = Sampler(own, pair.vocabulary.end_tokens)
    # The gap ranks survivors better than the probability and needs no softmax; llama.cpp's p-min
    # is a probability.
    score = top_probability if speculation.stopping_rule == "threshold" else margin
    return ModelDrafter(cache, sampler, pair.vocabulary, score)


def scheduled(
    pair: Pair, sampling: Sampling, speculation: Speculation
) -> tuple[Speculation, StoppingRule]:
    """The stopping rule for these models, and the settings with acceptance ``auto`` decided."""
    if speculation.stopping_rule in ("fixed", "threshold"):
        acceptance = speculation.acceptance
        if acceptance == "auto":
            acceptance = "ratio" if sampling.seed is None else "match"
        chosen = speculation.model_copy(update={"acceptance": acceptance})
        return chosen, make_stopping_rule(chosen)
    learned = pair.learned(speculation)
    meanings = {
        name: learned.calibration(NAME, name, sampling.temperature)
        for name in ("ratio", "match", "typical", "threshold")
    }
    acceptance = speculation.acceptance
    if acceptance == "auto" and sampling.temperature > 0.0:
        # With a seed, the text must not depend on what was drafted, hence on the clock.
        acceptance = "match"
        if sampling.seed is None:
            limit = speculation.draft_max
            acceptance = faster_acceptance(
                learned.costs, meanings["ratio"], meanings["match"], limit
            )
    elif acceptance == "auto":
        acceptance = "ratio"
    chosen = speculation.model_copy(update={"acceptance": acceptance})
    shadow = meanings["match"] if acceptance == "ratio" and sampling.temperature > 0.0 else None
    rule = make_stopping_rule(chosen, learned.costs, meanings[acceptance], shadow)
    return chosen, rule
