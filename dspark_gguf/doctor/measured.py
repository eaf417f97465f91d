"""What is measured with the loaded models: logits, costs, expected speed, other settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice
from typing import Any

from dspark_gguf.config import Settings, Speculation
from dspark_gguf.cost import LearnedCosts
from dspark_gguf.doctor import rows, ways
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.measure.charts import text_table
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.schedule.expected import expected_ranges, expected_speedup, ranges_text
from dspark_gguf.schedule.learning import solved

#: Seconds for each comparison, and for reading the contexts before it.
_BUDGET, _READING = 2.0, 3.0
#: Tokens of context of the short and the long comparison. The long one is beyond the 256 where
#: 8-bit and 4-bit weights begin to differ through attention; it is shorter where reading takes
#: too long, and left out below _SHORTEST.
_SHALLOW, _DEEP, _SHORTEST = 16, 320, 64
#: Numbers of rows to show of the cost table, as far as they were measured.
_SHOWN = (1, 2, 3, 4, 5, 6, 8, 9, 13, 17)
#: Verified draft tokens of this pair that say more about it than the usual acceptance does.
_ENOUGH = 200


def costs(pair: Pair, speculation: Speculation) -> Section:
    """The scheduler's table: milliseconds of passes, and their ratio to a pass of one row."""
    known = pair.learned(speculation).costs
    seconds, looks = known.target_seconds, known.draft_seconds
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
        look = float(looks[0] if is_block else looks[1] - looks[0])
        what = f"a block of {pair.most_drafts} draft tokens" if is_block else "a draft step"
        lines += f"\n{what}: {1e3 * look:.1f} ms, {look / seconds[0]:.2f} of a pass"
        facts["look_milliseconds"] = round(1e3 * look, 3)
    if speculation.learn:
        lines += "\nkept between runs, updated in every round; --no-learn measures anew"
    return Section(lines, facts, value=known)


def speed(pair: Pair, settings: Settings, known: LearnedCosts) -> Section:
    """Plain speed, and what to expect with this draft, and why."""
    limit = min(settings.speculation.most_looks, pair.most_drafts)
    target = known.target_seconds[: limit + 1]
    plain = 1.0 / float(target[0])
    text = f"plain {plain:.1f} tokens a second; "
    facts: dict[str, Any] = {"plain_tokens_per_second": round(plain, 2)}
    if pair.draft is None:
        # A pass of more rows that took less than one of one row was disturbed.
        gains = {
            count: round(count / max(1.0, plain * float(known.target_seconds[count - 1])), 3)
            for count in (4, 8)
        }
        text += "without a draft model, where text repeats: "
        text += ", ".join(f"{count} tokens a pass x{gain:.2f}" for count, gain in gains.items())
        return Section(text + "; elsewhere plain", facts | {"copying": gains})
    looks = known.draft_seconds[:limit]
    usual = expected_ranges(target, looks)
    most, length = expected_speedup(target, looks, 1.0)
    text += f"expected: {ranges_text(usual)}; if every draft token were accepted x{most:.2f}"
    text += f" with {length} draft tokens a round" if length else ""
    facts |= {"usual": usual, "bound": round(most, 3)}
    own = _own_forecast(pair, settings, known, limit)
    if own is not None:
        text += f"; x{own:.2f} from what this pair has done here so far"
        facts["learned"] = round(own, 3)
    too_slow = Finding(
        f"this draft is too slow: x{most:.2f} at best, if all its tokens were accepted",
        "Use a smaller draft, or none (prompt lookup costs nothing); with this one, drafting "
        "stays off.",
        wrong=False,
    )
    return Section(text, facts, (too_slow,) * (most < 1.1))


def _own_forecast(pair: Pair, settings: Settings, known: LearnedCosts, limit: int) -> float | None:
    """The scheduler's forecast of speed over plain; None before it knows the pair."""
    learned, temperature = pair.learned(settings.speculation), settings.sampling.temperature
    draft = pair.draft_cache()
    kind = "" if draft is None else draft.kind
    seen = [learned.calibration(kind, rule, temperature) for rule in ("rejection", "match")]
    policies = [solved(known, one, limit) for one in seen if one.tested >= _ENOUGH]
    if not policies:
        return None
    return max(1.0, *(policy.rate / policy.plain_rate for policy in policies))


def logits(pair: Pair, known: LearnedCosts | None) -> Section:
    """From how many rows on the rows of one pass differ from single rows, in two contexts."""
    tokens, cache = text_tokens(pair), pair.target_cache
    depths = [depth for depth in (_SHALLOW, affordable_depth(pair, known)) if depth]
    found = [rows.differences(cache, tokens, depth) for depth in dict.fromkeys(depths)]
    cache.trim(0)
    differences = [
        {"depth": one.depth, "by_rows": one.as_dict(), "flipped": one.flipped} for one in found
    ]
    wrong = tuple(
        Finding(
            f"rows of one pass differ from single rows by {one.most:.2g} at {one.depth} tokens, "
            f"and best tokens flip {one.flipped:.2f} apart: this is no rounding",
            "Report it to llama.cpp with this text: its kernels for few rows are at fault.",
        )
        for one in found
        if not one.is_rounding
    )
    return Section("; ".join(map(str, found)), {"differences": differences}, wrong)


def threads(pair: Pair) -> Section:
    """Passes with the present threads beside other numbers of them."""
    if pair.target.gpu_layers > pair.target.n_layer:
        return Section("all layers are on the GPU: CPU threads hardly matter")
    cache, tokens = pair.target_cache, text_tokens(pair)
    prefill(cache, tokens[:_SHALLOW])
    found = ways.threads(cache, tokens, _BUDGET)
    cache.trim(0)
    return compared(found, "one core: nothing to choose")


def attention(pair: Pair, known: LearnedCosts | None) -> Section:
    """Flash attention and the cache's type, in a context long enough to show a difference."""
    depth = affordable_depth(pair, known, contexts=3)
    if not depth:
        return Section("flash attention, cache types: not timed, reading a context takes too long")
    found = ways.attention(pair.target, text_tokens(pair), depth, _BUDGET)
    section = compared(found, "nothing to choose")
    return Section(f"at {depth} tokens: {section.text}", section.facts, section.findings)


def compared(found: Sequence[ways.Way], nothing: str) -> Section:
    """What was timed beside the present settings; `nothing`: the text where there is none."""
    text = ", ".join(f"{way.name} takes x{way.ratio:.2f}" for way in found)
    findings = tuple(
        Finding(
            f"{way.name} takes x{way.ratio:.2f} of the time of the present options",
            f"Add {way.name} to your options.",
            wrong=False,
        )
        for way in sorted(found, key=lambda way: way.ratio)[:1]
        if way.is_faster
    )
    facts = {"seconds_over_now": {way.name: round(way.ratio, 3) for way in found}}
    return Section(f"{text} of the time now" if text else nothing, facts, findings)


def affordable_depth(pair: Pair, known: LearnedCosts | None, contexts: int = 1) -> int:
    """Tokens of context that so many caches can read in the budget; 0: too few to tell."""
    if known is None:
        return 0
    rows_known = known.measured_rows[-1]
    each = float(known.target_seconds[rows_known - 1]) / rows_known
    room = pair.target_cache.n_ctx - _SHALLOW
    depth = min(_DEEP, room, int(_READING / (each * contexts)))
    return depth if depth >= _SHORTEST else 0


def text_tokens(pair: Pair, count: int = _DEEP + 32) -> list[int]:
    """Tokens of real text, as many as the measurements want."""
    text = "\n".join(
        str(message["content"]) for prompt in read_prompts() for message in prompt.messages
    )
    ids = pair.vocabulary.tokenize(text[: 16 * count], special=False, add_bos=True)
    return list(islice(chain(ids, cycle(ids)), count))
