"""The speed to expect from a pair before it has drafted, from costs and the usual acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
import numpy.typing as npt

from dspark_gguf.config import Speculation
from dspark_gguf.learned_costs import LearnedCosts

#: Acceptance rate of a draft token if those before it were accepted, from the lowest to the highest
#: text. Measured with quantizations of one model (F32 to Q8_0 targets, a Q2_K draft): first tokens
#: agreed at 73-95 % of positions in code and maths, at 35-75 % in open chat.
CODE_AGREEMENT, CHAT_AGREEMENT = (0.75, 0.95), (0.35, 0.75)
#: Acceptance rates taken as equally likely before a pair has drafted, from chat to code.
_LIKELY = (0.6, 0.7, 0.8, 0.9)
#: A draft that gains less than 1 % even if it is always right is a waste of memory.
LEAST_GAIN = 1.01
#: The usual range of agreement by kind of text.
USUAL_AGREEMENT: Mapping[str, tuple[float, float]] = {
    "code": CODE_AGREEMENT,
    "chat": CHAT_AGREEMENT,
}
#: The same by kind of draft, as reported by others. DSpark, DFlash, EAGLE-3: from the tokens per
#: round of seven guesses in table 1 of the DSpark paper, for drafts made for their target.
#: Prediction heads: 68 to 97 % of up to three guesses were accepted (mlx-lm#990, llama.cpp#23398,
#: ik_llama.cpp#1970). Another tokenizer: between the figures for translated tokens and for text
#: (vllm#38174, transformers#33383).
AGREEMENT_BY_KIND: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "dspark": {"code": (0.85, 0.92), "chat": (0.72, 0.76)},
    "dflash": {"code": (0.80, 0.88), "chat": (0.65, 0.70)},
    "eagle3": {"code": (0.77, 0.86), "chat": (0.60, 0.66)},
    "mtp": {"code": (0.77, 0.90), "chat": (0.55, 0.75)},
    "foreign": {"code": (0.50, 0.75), "chat": (0.20, 0.50)},
}


def expected_speedup(
    target_seconds: npt.ArrayLike, draft_seconds: npt.ArrayLike, agreement: float
) -> tuple[float, int]:
    """Speed over plain decoding of the best fixed draft length, and that length in tokens.

    Leviathan et al. 2023, with measured costs instead of a constant. No draft gives (1.0, 0). The
    scheduler chooses a length for each round: it can do better, and pays a little for exploration.

    Args:
        target_seconds: of a target pass of 1, 2, ... rows.
        draft_seconds: of 1, 2, ... draft steps, cumulative.
        agreement: probability that a draft token survives if those before it did.

    """
    target, draft = np.asarray(target_seconds, float), np.asarray(draft_seconds, float)
    longest = min(len(target) - 1, len(draft))
    tokens = np.cumsum(float(agreement) ** np.arange(longest + 1))  # of a round of 0, 1, ... drafts
    seconds = target[: longest + 1] + np.concatenate(([0.0], draft[:longest]))
    speedups = tokens * target[0] / seconds
    best = int(np.argmax(speedups))
    return float(speedups[best]), best


def likely_saving(target_seconds: npt.ArrayLike, draft_seconds: npt.ArrayLike) -> float:
    """Share of the time that drafting saves, averaged over likely acceptance rates, 0 to 1."""
    return 1.0 - mean(1.0 / expected_speedup(target_seconds, draft_seconds, a)[0] for a in _LIKELY)


def is_hopeless(costs: LearnedCosts, speculation: Speculation) -> bool:
    """Whether not to use a draft model: on this machine it would not pay even if always right.

    Only if `speculation` leaves the choice of the drafter open, and its costs were measured while
    the machine was idle. A draft that is not loaded cannot be measured again, so now and then a
    process loads it anyway.
    """
    limit = speculation.max_draft_steps
    left_to_us = speculation.drafter == "auto" and speculation.stopping_rule == "optimal"
    if not left_to_us or limit < 1 or not costs.covers(limit, drafts=True):
        return False
    if costs.is_draft_due or any(costs.is_doubtful(rows) for rows in (1, 2)):
        return False
    costs = costs.at_start
    target, draft = costs.target_seconds[: limit + 1], costs.draft_seconds[:limit]
    return expected_speedup(target, draft, 1.0)[0] <= LEAST_GAIN


def expected_ranges(
    target_seconds: npt.ArrayLike, draft_seconds: npt.ArrayLike, kind: str = "plain"
) -> dict[str, tuple[float, float]]:
    """Expected range of the speedup with a kind of draft, by kind of text."""
    usual = AGREEMENT_BY_KIND.get(kind, USUAL_AGREEMENT)

    def speed(agreement: float) -> float:
        return expected_speedup(target_seconds, draft_seconds, agreement)[0]

    return {text: (speed(low), speed(high)) for text, (low, high) in usual.items()}


def ranges_text(ranges: Mapping[str, Sequence[float]]) -> str:
    """Such as ``code 1.4-2.1x, chat 1.0-1.2x``."""
    ends = {kind: [f"{speed:.1f}" for speed in both] for kind, both in ranges.items()}
    # dict.fromkeys: a range of one speed is written once.
    return ", ".join(f"{kind} {'-'.join(dict.fromkeys(both))}x" for kind, both in ends.items())
