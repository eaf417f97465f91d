"""What is measured with the loaded models: logits, costs, expected speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import numpy as np

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Cache, prefill
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.measure.check import NEAR_TIE
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.sampling import margin
from dspark_gguf.schedule.expected import expected_speedup
from dspark_gguf.speedup import speedup_here
from dspark_gguf.visible import text_table

#: Seconds for reading the contexts before a comparison.
_READING = 3.0
#: Tokens of context in the short and the long comparison. The long one is above the 256 where 8-bit
#: and 4-bit weights begin to differ through attention; it is shortened if reading takes too long,
#: and left out below _SHORTEST.
_SHALLOW, _DEEP, _SHORTEST = 16, 320, 64
#: Most rows of a pass that are compared with single rows.
_ROWS = 9
#: Numbers of rows to show from the cost table, if they were measured.
_SHOWN = (1, 2, 3, 4, 5, 6, 8, 9, 13, 17)


@dataclass(frozen=True, slots=True)
class Differences:
    """How logits change with the number of rows of a pass."""

    depth: int  # tokens of context
    by_rows: Mapping[int, float]  # number of rows -> largest difference of a logit from single rows
    #: The widest gap, in logits, between the two best tokens of a single row whose best token
    #: changed; 0: none changed.
    flipped: float

    @property
    def first(self) -> int | None:
        """The smallest number of rows that differ; None: they never do."""
        return next((rows for rows, most in self.by_rows.items() if most > 0.0), None)

    @property
    def most(self) -> float:
        """The largest difference of all; infinite where a logit is not finite."""
        return max(self.by_rows.values(), default=0.0)

    @property
    def is_rounding(self) -> bool:
        """Whether only near-ties flip."""
        return bool(np.isfinite(self.most)) and self.flipped <= NEAR_TIE

    def as_dict(self) -> dict[int, float | None]:
        """By rows; None, which JSON has, for infinity."""
        return {n: most if np.isfinite(most) else None for n, most in self.by_rows.items()}

    def __str__(self) -> str:
        rows = f"{min(self.by_rows)}-{max(self.by_rows)} rows"
        where = f"at {self.depth} tokens of context"
        if self.first is None:
            return f"{where} {rows} equal single rows"
        flips = f" (best tokens flip up to {self.flipped:.2f} apart)" if self.flipped else ""
        return f"{where} from {self.first} rows on by up to {self.most:.2g}{flips}"


def costs(pair: Pair, speculation: Speculation) -> Section:
    """The scheduler's table: milliseconds of passes, and their ratio to a pass of one row."""
    known = pair.learned(speculation).costs
    seconds, draft_seconds = known.target_seconds, known.draft_seconds
    shown = [count for count in _SHOWN if count in known.measured_rows]
    taken = [float(seconds[count - 1]) for count in shown]
    ms = ["ms", *(f"{1e3 * one:.1f}" for one in taken)]
    over = ["over 1", *(f"{one / seconds[0]:.2f}" for one in taken)]
    lines = text_table(["rows", *map(str, shown)], [ms, over])
    facts: dict[str, Any] = {
        "milliseconds": {n: round(1e3 * one, 3) for n, one in zip(shown, taken, strict=True)}
    }
    if pair.draft is not None:
        draft = pair.draft_cache()
        is_block = draft is not None and draft.kind == "block"
        whole = float(draft_seconds[pair.max_drafts - 1])
        step = whole if is_block else float(draft_seconds[1] - draft_seconds[0])
        what = f"a block of {pair.max_drafts} draft tokens" if is_block else "a draft step"
        lines += f"\n{what}: {1e3 * step:.1f} ms, {step / seconds[0]:.2f} of a pass"
        facts["draft_step_milliseconds"] = round(1e3 * step, 3)
    if speculation.learn:
        lines += "\nkept between runs, updated in every round; --no-learn measures anew"
    return Section(lines, facts, value=known)


def speed(pair: Pair, settings: Settings, known: LearnedCosts) -> Section:
    """Whether this pair is faster than its target alone, the plain speed, and the upper bound."""
    here = speedup_here(pair, settings, known)
    plain = 1.0 / float(known.target_seconds[0])
    text = f"{here}; plain {plain:.1f} tokens a second"
    facts: dict[str, Any] = {"speedup": here.as_dict(), "plain_tokens_per_second": round(plain, 2)}
    if pair.draft is None:
        return Section(text, facts)
    limit = min(settings.speculation.max_draft_steps, pair.max_drafts)
    target, draft_seconds = known.target_seconds[: limit + 1], known.draft_seconds[:limit]
    most, length = expected_speedup(target, draft_seconds, 1.0)
    text += f"; x{most:.2f} if every draft token were accepted"
    text += f", with {length} of them a round" if length else ""
    facts["bound"] = round(most, 3)
    too_slow = Finding(
        f"this draft is too slow: x{most:.2f} at best, if all its tokens were accepted",
        "Use a smaller draft, or none (prompt lookup costs nothing); with this one, drafting "
        "stays off.",
        wrong=False,
    )
    return Section(text, facts, (too_slow,) * (most < 1.1))


def logits(pair: Pair, known: LearnedCosts | None) -> Section:
    """The number of rows from which rows of one pass differ from single rows, in two contexts."""
    if small := too_small(pair, _SHALLOW + _ROWS):
        return small
    tokens, cache = text_tokens(pair), pair.target_cache
    depths = [depth for depth in (_SHALLOW, affordable_depth(pair, known)) if depth]
    found = [differences(cache, tokens, depth) for depth in dict.fromkeys(depths)]
    cache.trim(0)
    shown = [
        {"depth": one.depth, "by_rows": one.as_dict(), "flipped": one.flipped} for one in found
    ]
    wrong = tuple(
        Finding(
            f"rows of one pass differ from single rows by {one.most:.2g} at {one.depth} tokens, "
            f"and best tokens flip {one.flipped:.2f} apart: this is not rounding",
            "Report it to llama.cpp with this text: its kernels for few rows are at fault.",
        )
        for one in found
        if not one.is_rounding
    )
    return Section("; ".join(map(str, found)), {"differences": shown}, wrong)


def differences(cache: Cache, tokens: Sequence[int], depth: int, most: int = _ROWS) -> Differences:
    """Compare passes of 2 to `most` rows with single rows, after `depth` of these tokens.

    llama.cpp picks its kernels by the number of rows: logits differ a little, and near-ties flip.
    """
    prefill(cache, tokens[:depth])
    alone = [cache.decode(tokens[depth + k : depth + k + 1], 1)[0].copy() for k in range(most)]
    by_rows, flipped = {}, 0.0
    for count in range(2, most + 1):
        cache.trim(depth)
        rows = cache.decode(tokens[depth : depth + count], count)
        off = [float(np.abs(rows[k] - alone[k]).max()) for k in range(count)]
        by_rows[count] = max(off) if np.isfinite(off).all() else np.inf
        for k in range(count):
            if rows[k].argmax() != alone[k].argmax():
                flipped = max(flipped, margin(alone[k]))
    cache.trim(depth)
    return Differences(depth, by_rows, flipped)


def too_small(pair: Pair, needed: int = _SHALLOW + _SHORTEST) -> Section | None:
    """Stands for a comparison that needs so many tokens of context; None: they are there."""
    n_ctx = pair.target_cache.n_ctx
    text = f"not compared: this takes a context of {needed} tokens, and {n_ctx} are set"
    return Section(text) if n_ctx < needed else None


def affordable_depth(pair: Pair, known: LearnedCosts | None, contexts: int = 1) -> int:
    """Tokens that this many caches can read within the budget; 0: too few for a comparison."""
    if known is None:
        return 0
    rows_known = known.measured_rows[-1]
    each = float(known.target_seconds[rows_known - 1]) / rows_known
    room = pair.target_cache.n_ctx - _SHALLOW
    depth = min(_DEEP, room, int(_READING / (each * contexts)))
    return depth if depth >= _SHORTEST else 0


def text_tokens(pair: Pair, count: int = _DEEP + 32) -> list[int]:
    """As many tokens of real text as the measurements need."""
    text = "\n".join(
        str(message["content"]) for prompt in read_prompts() for message in prompt.messages
    )
    ids = pair.vocabulary.tokenize(text[: 16 * count], special=False, add_bos=True)
    return list(islice(chain(ids, cycle(ids)), count))
