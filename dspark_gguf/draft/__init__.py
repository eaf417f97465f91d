"""Drafters, one per file, one protocol (``base.py``); ``make_drafter`` chooses."""

from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.engine.pair import Pair
from dspark_gguf.sampling import Sampler

__all__ = ["Drafter", "ModelDrafter", "NoDrafter", "make_drafter"]


def make_drafter(pair: Pair, sampling: Sampling, speculation: Speculation) -> Drafter:
    """The drafter for these models; `NoDrafter` where speculation is off or impossible."""
    cache = None if speculation.mode == "off" else pair.draft_cache()
    if cache is None:
        return NoDrafter()
    # Only `ratio` needs the draft to draw; the other rules accept its best guess more often.
    draws = speculation.acceptance == "ratio"
    own = sampling if draws else sampling.model_copy(update={"temperature": 0.0})
    return ModelDrafter(cache, Sampler(own, pair.vocabulary.end_tokens), pair.vocabulary)
