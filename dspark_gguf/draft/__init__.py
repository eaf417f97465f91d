"""Drafters, one per file, one protocol (``base.py``); ``make_drafter`` chooses."""

from dspark_gguf.calibration import log_odds
from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.draft.block import BlockDrafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.engine.block import BlockContext
from dspark_gguf.engine.pair import Pair
from dspark_gguf.sampling import Sampler, margin, top_probability
from dspark_gguf.schedule import StoppingRule, faster_acceptance, make_stopping_rule

__all__ = [
    "BlockDrafter",
    "Drafter",
    "ModelDrafter",
    "NoDrafter",
    "make_drafter",
    "name_of",
    "scheduled",
]


def name_of(pair: Pair) -> str:
    """The name under which the scores of this pair's drafter are remembered."""
    return "block" if isinstance(pair.draft_cache(), BlockContext) else "model"


def make_drafter(pair: Pair, sampling: Sampling, speculation: Speculation) -> Drafter:
    """The drafter for these models; `NoDrafter` where speculation is off or impossible."""
    cache = None if speculation.mode == "off" else pair.draft_cache()
    if cache is None:
        return NoDrafter()
    by_probability = speculation.stopping_rule == "threshold"
    # Only `ratio` needs the draft to draw; the other rules accept its best guess more often.
    draws = speculation.acceptance in ("auto", "ratio")
    own = sampling if draws else sampling.model_copy(update={"temperature": 0.0})
    sampler = Sampler(own, pair.vocabulary.end_tokens)
    # The gap ranks survivors better than the probability and needs no softmax; llama.cpp's p-min
    # is a probability.
    score = top_probability if by_probability else margin
    if isinstance(cache, BlockContext):
        sure_score = float if by_probability else log_odds
        return BlockDrafter(cache, sampler, pair.vocabulary, score, sure_score)
    return ModelDrafter(cache, sampler, pair.vocabulary, score)


def scheduled(
    pair: Pair, sampling: Sampling, speculation: Speculation
) -> tuple[Speculation, StoppingRule]:
    """The stopping rule for these models, and the settings with acceptance ``auto`` decided."""
    # With a seed, the text must not depend on what was drafted, hence on the clock. A block is a
    # greedy chain: draws leave it soon, the target's own samples follow it further.
    block = isinstance(pair.draft_cache(), BlockContext)
    matched = sampling.temperature > 0.0 and (sampling.seed is not None or block)
    if speculation.stopping_rule in ("fixed", "threshold"):
        acceptance = speculation.acceptance
        if acceptance == "auto":
            acceptance = "match" if matched or sampling.seed is not None else "ratio"
        chosen = speculation.model_copy(update={"acceptance": acceptance})
        return chosen, make_stopping_rule(chosen)
    learned = pair.learned(speculation)
    most = min(speculation.draft_max, pair.most_drafts)
    meanings = {
        name: learned.calibration(name_of(pair), name, sampling.temperature)
        for name in ("ratio", "match", "typical", "threshold")
    }
    acceptance = speculation.acceptance
    if acceptance == "auto" and matched:
        acceptance = "match"
    elif acceptance == "auto" and sampling.temperature > 0.0:
        acceptance = faster_acceptance(learned.costs, meanings["ratio"], meanings["match"], most)
    elif acceptance == "auto":
        acceptance = "ratio"
    chosen = speculation.model_copy(update={"acceptance": acceptance, "draft_max": most})
    shadow = meanings["match"] if acceptance == "ratio" and sampling.temperature > 0.0 else None
    rule = make_stopping_rule(chosen, learned.costs, meanings[acceptance], shadow)
    return chosen, rule
