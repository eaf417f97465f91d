"""Drafters, one per file, one protocol (``base.py``); ``make_drafter`` chooses."""

from dataclasses import dataclass
from pathlib import Path

from dspark_gguf.calibration import Calibration, log_odds
from dspark_gguf.config import Sampling, Speculation
from dspark_gguf.draft.base import Drafter, NoDrafter
from dspark_gguf.draft.block import BlockDrafter
from dspark_gguf.draft.cascade import Cascade
from dspark_gguf.draft.lookup import LookupDrafter
from dspark_gguf.draft.model import ModelDrafter
from dspark_gguf.draft.store import Store
from dspark_gguf.engine.block import BlockContext
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.pair import Pair
from dspark_gguf.sampling import Sampler, margin, top_probability
from dspark_gguf.schedule import StoppingRule, faster_acceptance, make_stopping_rule

__all__ = [
    "BlockDrafter",
    "Cascade",
    "Drafter",
    "LookupDrafter",
    "ModelDrafter",
    "NoDrafter",
    "Store",
    "make_drafter",
    "name_of",
    "scheduled",
]


@dataclass(frozen=True, slots=True)
class _Cast:
    """Who drafts.

    Attributes:
        cache: of the draft model that looks, or None.
        copies: whether tokens are copied from the conversation.

    """

    cache: Context | None
    copies: bool

    @classmethod
    def of(cls, pair: Pair, speculation: Speculation) -> "_Cast":
        if speculation.mode == "off":
            return cls(None, False)
        cache = None if speculation.drafter == "lookup" else pair.draft_cache()
        both = speculation.drafter == "auto" and speculation.stopping_rule == "optimal"
        return cls(cache, copies=cache is None or both)


def name_of(pair: Pair) -> str:
    """The name under which the scores of this pair's draft model are remembered."""
    return "block" if isinstance(pair.draft_cache(), BlockContext) else "model"


def make_drafter(pair: Pair, sampling: Sampling, speculation: Speculation) -> Drafter:
    """The drafter for these models; `NoDrafter` where speculation is off or impossible."""
    cast = _Cast.of(pair, speculation)
    texts = None
    if cast.copies and speculation.lookup_store is not None:
        path, vocabulary = Path(speculation.lookup_store), pair.vocabulary
        texts = Store.load(path, vocabulary.fingerprint, vocabulary.n_tokens)
    lookup = LookupDrafter(pair.vocabulary, texts)
    if cast.cache is None:
        return lookup if cast.copies else NoDrafter()
    looking = _looking(cast.cache, pair, sampling, speculation)
    return Cascade(lookup, looking) if cast.copies else looking


def _looking(
    cache: Context, pair: Pair, sampling: Sampling, speculation: Speculation
) -> ModelDrafter | BlockDrafter:
    by_probability = speculation.stopping_rule == "threshold"
    # Only `ratio` needs the draft to draw; the other rules accept its best guess more often.
    draws = speculation.acceptance in ("auto", "ratio")
    own = sampling if draws else sampling.model_copy(update={"temperature": 0.0})
    sampler = Sampler.of(own, pair.vocabulary)
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
    cast = _Cast.of(pair, speculation)
    most = min(speculation.most_looks, pair.most_drafts) if cast.cache is not None else 0
    # A block is a greedy chain: draws leave it soon, the target's own samples follow it further.
    # Copies are not drawn either.
    one_point = cast.cache is None or isinstance(cast.cache, BlockContext)
    # With a seed, the text must not depend on what was drafted, hence on the clock.
    matched = sampling.seed is not None or (sampling.temperature > 0.0 and one_point)
    acceptance = speculation.acceptance
    by_hand = speculation.stopping_rule in ("fixed", "threshold")
    if acceptance == "auto" and (matched or by_hand or not sampling.temperature):
        acceptance = "match" if matched and (by_hand or sampling.temperature) else "ratio"
    if by_hand:
        chosen = speculation.model_copy(update={"acceptance": acceptance})
        return chosen, make_stopping_rule(chosen, looks=most)
    learned = pair.learned(speculation)

    def meaning(drafter: str, acceptance: str) -> Calibration:
        return learned.calibration(drafter, acceptance, sampling.temperature)

    name = name_of(pair)
    ratio, match = meaning(name, "ratio"), meaning(name, "match")
    if acceptance == "auto":
        acceptance = faster_acceptance(learned.costs, ratio, match, most)
    chosen = speculation.model_copy(update={"acceptance": acceptance})
    rule = make_stopping_rule(
        chosen,
        learned.costs,
        meaning(name, acceptance),
        shadow=match if acceptance == "ratio" and sampling.temperature > 0.0 else None,
        copies=meaning("lookup", acceptance) if cast.copies else None,
        looks=most,
        looks_after=not isinstance(cast.cache, BlockContext),
    )
    return chosen, rule
