"""What an answer cost, in words."""

from __future__ import annotations

from dataclasses import dataclass

from dspark_gguf.tally import Answer, Tally

#: How the status line describes an answer that did not end by itself.
_ENDS = {
    "length": "stopped at the token limit",
    "context": "stopped: the context is full (--ctx-size, or --context-shift)",
    "cancelled": "interrupted",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """The acceptance rule, and how fast answers are.

    `plain` and `drafting` are the measured tokens per second of plain decoding on this machine, and
    the expected ones with drafts. `ratio` is the newest answer's speed over that of plain decoding
    at the same time. Each is None if unknown. `sources` says where that answer's drafts came from,
    `context` how many tokens are used, and of how many.
    """

    acceptance: str
    lossless: bool
    plain: float | None
    drafting: float | None
    seed: int | None  # of the noise that draws; None at temperature 0
    ratio: float | None = None
    is_busy: bool = False
    sources: str = ""
    saved: float = 0.0  # seconds, in all answers that could be compared; negative: lost
    context: tuple[int, int] = (0, 0)

    @property
    def slower(self) -> float | None:
        """The share by which drafting would be slower than plain decoding, or None."""
        if self.plain is None or self.drafting is None or self.drafting >= self.plain:
            return None
        return 1.0 - self.drafting / self.plain


def status_line(answer: Answer, summary: Summary) -> str:
    """One line after an answer: ``8 tok · 48.7 tok/s · 4.2x (copies) · ctx 1,240/8,192``."""
    tally = answer.tally
    drafted = tally.rounds > tally.plain_rounds
    parts = [f"{tally.tokens} tok", f"{tally.tokens_per_second:.1f} tok/s"]
    if not drafted:
        parts.append("plain")
    elif summary.ratio is not None:
        parts.append(f"{summary.ratio:.{1 if summary.ratio >= 2 else 2}f}x ({summary.sources})")
    else:
        parts.append("machine busy, no ratio" if summary.is_busy else f"with {summary.sources}")
    if summary.context[1]:
        parts.append("ctx {:,}/{:,}".format(*summary.context))
    if answer.finish_reason in _ENDS:
        parts.append(_ENDS[answer.finish_reason])
    if not summary.lossless and drafted:
        parts.append(f"LOSSY ({summary.acceptance})")
    return " · ".join(parts)


def stats_table(last: Tally, total: Tally, summary: Summary) -> list[tuple[str, str]]:
    """Name and value of every statistic, for the newest answer and for all answers."""
    kind = "lossless" if summary.lossless else "LOSSY"
    pairs = zip(_figures(last), _figures(total), strict=True)
    rows = [("", f"{'last answer':>14}{'all answers':>14}")]
    rows += [(name, f"{one:>14}{all_:>14}") for (name, one), (_, all_) in pairs]
    rows += [
        ("seconds to the first token", f"{last.first_token_seconds:>14.2f}"),
        ("accepted by position", " ".join(f"{x:.0%}" for x in total.shares_by_position()) or "-"),
        ("plain, tokens per second", _or_unknown(summary.plain, "{:.1f}")),
        ("the last answer", _or_unknown(summary.ratio, "{:.2f}x plain decoding of the same time")),
        ("all answers", f"drafting {'saved' if summary.saved >= 0 else 'lost'} "
                        f"{abs(summary.saved):.1f} s (an estimate)"),
        ("context", "{:,} of {:,} tokens used".format(*summary.context)),
        ("acceptance", f"{summary.acceptance} ({kind})"),
    ]  # fmt: skip
    if summary.is_busy:
        rows.append(("machine", "busy with other work: ratios may be missing"))
    if summary.seed is not None:
        rows.append(("seed", f"{summary.seed} (with it, the same text again)"))
    if summary.drafting is not None and summary.plain is not None:
        rows.append(("drafting should reach", f"{summary.drafting:.1f} tokens per second"))
    return rows


def _figures(tally: Tally) -> list[tuple[str, str]]:
    return [
        ("tokens", str(tally.tokens)),
        ("tokens per second", f"{tally.tokens_per_second:.1f}"),
        ("rounds (passes of the target)", str(tally.rounds)),
        ("rounds without a draft", str(tally.plain_rounds)),
        ("tokens per round", f"{tally.tokens_per_round:.2f}"),
        ("drafted", str(tally.drafted)),
        ("accepted", f"{tally.accepted} ({tally.accepted_share:.0%})"),
        ("seconds: reading prompts", f"{tally.prefill_seconds:.2f}"),
        ("seconds: target", f"{tally.target_seconds:.2f}"),
        ("seconds: draft", f"{tally.draft_seconds:.2f}"),
        ("seconds: controller", f"{tally.controller_seconds:.2f}"),
    ]


def _or_unknown(value: float | None, form: str) -> str:
    return "not known yet" if value is None else form.format(value)
