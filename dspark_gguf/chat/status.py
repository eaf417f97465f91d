"""What an answer cost, in words."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

from dspark_gguf.records import Round
from dspark_gguf.tally import Answer, Tally

#: Rounds without a draft before their median counts as a measurement.
_ENOUGH = 16
#: What the status line says of an answer that did not end by itself.
_ENDS = {
    "length": "stopped at the token limit",
    "context": "stopped: the context is full (--ctx-size, or --context-shift)",
    "cancelled": "interrupted",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """How answers are drafted: by which acceptance rule, if at all, and what it is compared with.

    `plain` are the tokens per second that plain decoding was measured to reach on this machine,
    `drafting` those that drafting should reach; None if not known.
    """

    acceptance: str
    lossless: bool
    off: bool
    plain: float | None
    drafting: float | None
    seed: int | None  # of the noise that draws; None at temperature 0

    @property
    def slower(self) -> float | None:
        """The share by which drafting would be slower than plain decoding, or None."""
        if self.plain is None or self.drafting is None or self.drafting >= self.plain:
            return None
        return 1.0 - self.drafting / self.plain

    def saved(self, tally: Tally) -> float | None:
        """Seconds that drafting saved against plain decoding; negative: lost."""
        if self.plain is None or not tally.tokens:
            return None
        return (tally.tokens - tally.first_tokens) / self.plain - tally.decode_seconds


class PlainSpeed:
    """The speed of plain decoding, from rounds without a draft.

    Such a round, less the time of drafting, is one pass over one token, as in plain decoding.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=256)

    def add(self, round: Round) -> None:
        """Count one round."""
        seconds = round.seconds - round.draft_seconds
        decodes = round.tokens and not round.prefill_seconds and not round.drafted
        if decodes and seconds > 0.0:  # a clock can be set back
            self._seconds.append(seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """None until enough was measured."""
        return 1.0 / median(self._seconds) if len(self._seconds) >= _ENOUGH else None


def status_line(answer: Answer, summary: Summary) -> str:
    """One line after an answer, such as ``142 tok  31.4 tok/s (plain 22.3, x1.41)  ...``."""
    tally, plain = answer.tally, summary.plain
    parts = [f"{tally.tokens} tok", f"{tally.tokens_per_second:.1f} tok/s"]
    drafted = tally.rounds > tally.plain_rounds
    if plain and drafted and tally.tokens_per_second:
        parts[-1] += f" (plain {plain:.1f}, x{tally.tokens_per_second / plain:.2f})"
    if drafted:
        parts.append(f"{tally.tokens_per_round:.1f} tok/round")
        parts.append(f"accept {tally.accepted_share:.0%}")
        parts.append(f"no draft in {tally.plain_rounds / tally.rounds:.0%} of rounds")
        if (saved := summary.saved(tally)) is not None:
            parts.append(f"{'saved' if saved >= 0 else 'lost'} {abs(saved):.1f} s")
    if not summary.off and summary.slower is not None:
        who = "the draft model" if drafted else "plain: drafting"
        parts.append(f"{who} would be {summary.slower:.0%} slower here")
    elif not drafted:
        parts.append("plain decoding")
    if tally.tokens:
        parts.append(f"first token {tally.first_token_seconds:.1f} s")
    if answer.finish_reason in _ENDS:
        parts.append(_ENDS[answer.finish_reason])
    if not summary.lossless and drafted:
        parts.append(f"LOSSY ({summary.acceptance})")
    return "  ".join(parts)


def stats_table(tally: Tally, summary: Summary) -> list[tuple[str, str]]:
    """Name and value of every statistic."""
    plain, saved = summary.plain, summary.saved(tally)
    kind = "lossless" if summary.lossless else "LOSSY"
    rows = [
        ("tokens", str(tally.tokens)),
        ("rounds (passes of the target)", str(tally.rounds)),
        ("rounds without a draft", str(tally.plain_rounds)),
        ("tokens per round", f"{tally.tokens_per_round:.2f}"),
        ("drafted", str(tally.drafted)),
        ("accepted", f"{tally.accepted} ({tally.accepted_share:.0%})"),
        ("accepted by position", _by_position(tally)),
        ("tokens per second", f"{tally.tokens_per_second:.1f}"),
        ("plain, measured", f"{plain:.1f}" if plain else "not measured yet (/spec off shows it)"),
        ("seconds: reading prompts", f"{tally.prefill_seconds:.2f}"),
        ("seconds: target", f"{tally.target_seconds:.2f}"),
        ("seconds: draft", f"{tally.draft_seconds:.2f}"),
        ("seconds: controller", f"{tally.controller_seconds:.2f}"),
        ("saved against plain", f"{saved:.2f} s" if saved is not None else "not known yet"),
        ("acceptance", f"{summary.acceptance} ({kind})"),
    ]
    if summary.seed is not None:
        rows.append(("seed", f"{summary.seed} (with it, the same text again)"))
    if summary.drafting is not None and summary.plain is not None:
        rows.append(("drafting should reach", f"{summary.drafting:.1f} tokens per second"))
    if summary.slower is not None:
        rows.append(("now", f"plain: drafting would be {summary.slower:.0%} slower here"))
    return rows


def _by_position(tally: Tally) -> str:
    shares = zip_longest(tally.accepted_by_position, tally.drafted_by_position, fillvalue=0)
    return " ".join(f"{yes / all_:.0%}" for yes, all_ in shares if all_) or "-"
