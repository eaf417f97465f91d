"""Whether speculation is faster here; measurements take precedence over expectations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, quantiles
from typing import Any, Literal

from dspark_gguf.arrays import Floats
from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Settings
from dspark_gguf.engine.kinds import kind_of_draft
from dspark_gguf.engine.pair import Pair
from dspark_gguf.learned import Comparison
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.schedule.expected import expected_ranges, is_hopeless, ranges_text
from dspark_gguf.schedule.learning import policy_for
from dspark_gguf.visible import counted

#: Compared answers that outweigh any forecast; verified draft tokens that outweigh the usual
#: acceptance; answers needed for a verdict.
_ENOUGH_ANSWERS, _ENOUGH_TOKENS, _FEW = 8, 200, 3
#: Smaller differences count as equal; normal variation of plain decoding on an idle machine.
_SAME, _STEADY = 1.05, 1.1
#: So many comparisons that all agree are significant whatever the spread: by chance, 1 in 32.
_ONE_SIDED = 6

Basis = Literal["measured", "learned", "expected", "estimated"]
Told = Literal["faster", "sometimes", "same", "slower", "unclear"]
_WORDS: Mapping[Told, str] = {
    "faster": "faster here",
    "sometimes": "faster here on some texts",
    "same": "not faster here",
    "slower": "slower here",
    "unclear": "no verdict",
}
_BUSY = "measure again when the machine is idle"


@dataclass(frozen=True, slots=True)
class Speedup:
    """Speed relative to plain decoding on this machine, measured or expected."""

    basis: Basis
    typical: float  # over all texts
    low: float  # the usual range
    high: float
    count: int = 0  # answers or draft tokens that it is based on
    kinds: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # range by kind of text
    doubt: str = ""  # why there is no verdict

    @property
    def told(self) -> Told:
        """The verdict."""
        if self.doubt:
            return "unclear"
        if (self.low if self.kinds else self.typical) >= _SAME:
            return "faster"
        if self.high >= _SAME:
            return "sometimes"
        return "slower" if self.typical <= 1.0 / _SAME else "same"

    @property
    def pays(self) -> bool:
        """Whether some texts are faster."""
        return self.told in ("faster", "sometimes")

    @property
    def words(self) -> str:
        """The verdict in words."""
        return _WORDS[self.told]

    @property
    def figures(self) -> str:
        """The numbers, such as ``1.42x (1.10-1.80x)``: at least half of the answers in between."""
        if self.kinds:
            return ranges_text(self.kinds)
        ends = [f"{end:.2f}" for end in (self.low, self.high)]
        return f"{self.typical:.2f}x" + (f" ({'-'.join(ends)}x)" if ends[0] != ends[1] else "")

    @property
    def source(self) -> str:
        """What the numbers are based on."""
        return {
            "measured": f"measured over {counted(self.count, 'answer')}",
            "learned": f"forecast from {self.count:,} draft tokens of this pair",
            "expected": "expected from what passes cost here",
            "estimated": "estimated from the sizes of the files",
        }[self.basis]

    def __str__(self) -> str:
        said = f"{self.words}: {self.figures} plain decoding, {self.source}"
        return f"{said}; {self.doubt}" if self.doubt else said

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = {name: round(getattr(self, name), 3) for name in ("typical", "low", "high")}
        kinds = {kind: [round(end, 3) for end in both] for kind, both in self.kinds.items()}
        return {"told": self.told, "basis": self.basis, **found, "count": self.count,
                "kinds": kinds}  # fmt: skip


def speedup_here(pair: Pair, settings: Settings, costs: LearnedCosts | None = None) -> Speedup:
    """The speedup of a pair on this machine; its costs are measured first if they are unknown.

    From answers that were compared with plain decoding if there are enough, else from the
    calibration of the draft, else from `costs` and the usual acceptance.
    """
    speculation = settings.speculation
    learned = pair.learned(speculation)
    costs = costs or learned.costs
    limit = min(speculation.max_draft_steps, pair.max_drafts)
    if len(learned.comparisons) >= _ENOUGH_ANSWERS:
        return measured(learned.comparisons)
    if not pair.has_draft or is_hopeless(costs, speculation):
        return _copying(costs)
    if draft := pair.caches.get("draft"):
        temperature = settings.sampling.temperature
        seen = learned.calibration(draft.kind, speculation.acceptance, temperature)
        if found := forecast(costs, seen, limit, draft.kind == "block"):
            return found
    kind = "plain" if pair.draft is None else kind_of_draft(pair.draft.header, pair.target.header)
    return expected(costs, costs.draft_seconds[:limit], kind=kind)


def forecast(
    costs: LearnedCosts, seen: Calibration, limit: int, is_block: bool = False
) -> Speedup | None:
    """From the calibration of a draft's guesses; None if too few were verified."""
    if seen.tested < _ENOUGH_TOKENS:
        return None
    policy = policy_for(costs, seen, limit, is_block=is_block)
    one = max(1.0, policy.rate / policy.plain_rate)
    return Speedup("learned", one, one, one, int(seen.tested), doubt=_doubt(costs))


def expected(
    costs: LearnedCosts, draft_seconds: Floats, basis: Basis = "expected", kind: str = "plain"
) -> Speedup:
    """From the costs here and the usual acceptance of this kind of draft.

    `draft_seconds` are of 1, 2, ... draft steps, cumulative.
    """
    passes = costs.target_seconds[: len(draft_seconds) + 1]
    return replace(usual(passes, draft_seconds, kind, basis), doubt=_doubt(costs))


def usual(
    target_seconds: Floats, draft_seconds: Floats, kind: str, basis: Basis = "estimated"
) -> Speedup:
    """The same from seconds of passes of 1, 2, ... rows, whatever their source."""
    kinds = expected_ranges(target_seconds, draft_seconds, kind)
    ends = [end for both in kinds.values() for end in both]
    return Speedup(basis, fmean(ends), min(ends), max(ends), kinds=kinds)


def _copying(costs: LearnedCosts) -> Speedup:
    """Without a draft model: a pass with 3 or 7 lookup tokens, if the text repeats itself."""
    one = float(costs.target_seconds[0])
    # If a pass of more rows takes less than one of one row, the latter was disturbed.
    few, many = (n / max(1.0, float(costs.target_seconds[n - 1]) / one) for n in (4, 8))
    kinds = {"new text": (1.0, 1.0), "copied text": (min(few, many), max(few, many))}
    return Speedup("expected", 1.0, 1.0, max(few, many), kinds=kinds, doubt=_doubt(costs))


def _doubt(costs: LearnedCosts) -> str:
    return f"costs were measured on a busy machine: {_BUSY}" if costs.was_disturbed else ""


def measured(comparisons: Sequence[Comparison], spread: float = 1.0) -> Speedup:
    """From the seconds of answers and of plain decoding at the same time.

    `spread` is the factor by which the speed of plain decoding itself varied meanwhile.
    """
    took, plain = (sum(seconds) for seconds in zip(*comparisons, strict=True))
    ratios = [one / ours for ours, one in comparisons]
    some = ratios if len(ratios) > 1 else ratios * 2
    low, _, high = quantiles(some, n=4, method="inclusive")
    typical = plain / took  # long answers count more: it may be outside the middle half
    sided = is_one_sided(min(ratios), max(ratios), len(ratios))
    doubt = ""
    if len(ratios) < _FEW:
        doubt = "that is too little to tell"
    elif exceeds(spread, typical) and not sided:
        doubt = f"plain decoding's own speed changed {spread:.1f}-fold meanwhile: {_BUSY}"
    low, high = min(low, typical), max(high, typical)
    return Speedup("measured", typical, low, high, len(ratios), doubt=doubt)


def exceeds(spread: float, ratio: float) -> bool:
    """Whether plain decoding itself varied by more than the difference from it."""
    return spread > max(ratio, 1.0 / ratio, _STEADY)


def is_one_sided(low: float, high: float, count: int) -> bool:
    """Whether `count` ratios between `low` and `high` all agree."""
    return count >= _ONE_SIDED and (low > 1.0 or high < 1.0)
