"""Which drafts fit a target, and the speed to expect from each on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dspark_gguf.catalog.candidates import Candidate
from dspark_gguf.catalog.demo import Progress
from dspark_gguf.catalog.listing import as_table, quoted
from dspark_gguf.config import Settings
from dspark_gguf.cost import LearnedCosts
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError
from dspark_gguf.paths import size_on_disk
from dspark_gguf.schedule.expected import USUAL_AGREEMENT, expected_ranges, ranges_text

#: Guesses of a DSpark draft whose file is not here: blocks of 7 are what is published.
_BLOCK = 7
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A draft and the speed to expect from it.

    Attributes:
        candidate: the draft.
        ranges: least and most speed over plain decoding by kind of text; None: not known.
        basis: ``measured``, ``estimated``, or why there is no number.

    """

    candidate: Candidate
    ranges: dict[str, tuple[float, float]] | None
    basis: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self.candidate)
        path = values["path"] and str(values["path"])
        own = {"path": path, "expected": self.ranges, "basis": self.basis}
        return {"draft": values.pop("name"), **values, **own}


def suggestions(
    target: Path, drafts: Sequence[Candidate], settings: Settings, progress: Progress
) -> list[Suggestion]:
    """The speed to expect from each draft, the best first.

    Args:
        target: the target's file.
        drafts: see `candidates`.
        settings: how to load both, and whether to keep the measurements.
        progress: called with a line when something takes long.

    Raises:
        DSparkError: the target cannot be loaded.

    """
    if not drafts:
        return []
    costs, _ = _measured(target, None, settings, progress)
    found = []
    for draft in drafts:
        if draft.path is None:
            found.append(_estimated(draft, costs, size_on_disk(target)))
            continue
        try:
            own, most = _measured(target, draft.path, settings, progress)
        except DSparkError as error:
            found.append(Suggestion(draft, None, error.problem))
        else:
            ranges = expected_ranges(own.target_seconds, own.draft_seconds[:most])
            found.append(Suggestion(draft, ranges, "measured"))
    return sorted(found, key=lambda each: -sum(map(sum, (each.ranges or {}).values())))


def _measured(
    target: Path, draft: Path | None, settings: Settings, progress: Progress
) -> tuple[LearnedCosts, int]:
    """Costs of a pair, as the first start of `chat` would learn them, and its most guesses."""
    pair = Pair(target, draft, settings.target_options, settings.draft_options)
    with pair:
        if draft is not None and pair.draft_cache() is None:
            raise DSparkError("; ".join(pair.notes), "Choose another draft.")
        if draft is not None:
            progress(f"{draft.name}:")
        learned = pair.learned(settings.speculation, progress)
        return learned.costs, min(settings.speculation.most_looks, pair.most_drafts)


def _estimated(draft: Candidate, costs: LearnedCosts, target_size: int) -> Suggestion:
    """A pass mostly reads the weights, so its seconds are in proportion to the size."""
    if draft.size is None:
        return Suggestion(draft, None, "size not known")
    target = costs.target_seconds
    look = float(target[0]) * draft.size / target_size
    looks = np.full(_BLOCK, look) if draft.kind == "dspark" else look * np.arange(1, 13)
    return Suggestion(draft, expected_ranges(target, looks), "estimated")


def as_text(target: str, found: Sequence[Suggestion]) -> str:
    """A table, and what to do next."""
    if not found:
        return (
            f"no draft for {target} in the list or on this machine. Without one, what the "
            "conversation already said is still copied where that pays."
        )
    table = as_table(
        ("draft", "GB", "from", "over plain decoding", ""),
        (
            (
                each.candidate.name,
                "?" if each.candidate.size is None else f"{each.candidate.size / _GB:.2f}",
                each.candidate.origin,
                ranges_text(each.ranges) if each.ranges else "-",
                each.basis,
            )
            for each in found
        ),
    )
    usual = ", ".join(
        f"{low:.0%} to {high:.0%} on {kind}" for kind, (low, high) in USUAL_AGREEMENT.items()
    )
    return (
        f"{table}\n\nif guesses behind right ones are right as often as usual: {usual}.\n"
        "measured: what both models cost here (--no-learn measures again). estimated: the draft's "
        f"cost, from the sizes of both files.\n{_advice(target, found)}"
    )


def _advice(target: str, found: Sequence[Suggestion]) -> str:
    best = next((each for each in found if each.ranges), None)
    if best is None or max(high for _, high in (best.ranges or {}).values()) < 1.05:
        return "none of them pays on this machine: use the target without a draft"
    candidate = best.candidate
    use = f"dspark-gguf chat -m {target} -d {quoted(candidate.name)}"
    if candidate.path is None:
        if candidate.how.startswith("--"):
            return f"make the best: dspark-gguf suggest -m {target} {candidate.how}"
        return f"get the best: {candidate.how}; use it: {use}"
    return f"use the best: {use}"
