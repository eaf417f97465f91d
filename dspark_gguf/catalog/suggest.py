"""Drafts that fit a target, from the list, this machine or itself, and the speed to expect."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dspark_gguf.catalog.demo import Progress
from dspark_gguf.catalog.found import BLOCK, draft_seconds, drafts_inside, names_of, neighbours
from dspark_gguf.catalog.listing import quote
from dspark_gguf.catalog.local import find_local, local_files
from dspark_gguf.catalog.pairs import OWN_HEADS, KnownPair, pairs_for
from dspark_gguf.config import Settings
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.dflash import ARCHITECTURE
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.kinds import kind_of_draft, share_of_a_pass
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.quantize import quantize, quantized_size
from dspark_gguf.errors import DSparkError, ModelError, UsageError
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.naming import family_of, is_sidecar
from dspark_gguf.paths import cache_path, caching, require_space, size_on_disk
from dspark_gguf.schedule.expected import USUAL_AGREEMENT, is_hopeless
from dspark_gguf.speedup import Speedup, expected, speedup_here
from dspark_gguf.visible import visible

#: A quantization of the target is offered as a draft if it is below this share of its size.
_SMALLER = 0.9
#: Limits for drafts with another tokenizer: share of the target's size, and how many to offer.
_FOREIGN, _MAX_FOREIGN = 1 / 8, 3
#: Draft steps in a row, for drafts other than blocks.
_STEPS = 12


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may draft, and the speed to expect from it."""

    draft: str  # what to write after -d
    origin: str  # where it comes from, in words
    kind: str  # see `kinds.NAMES`
    size: int | None  # bytes; None: not known
    path: Path | None = None  # None: not on this machine
    how: str = ""  # to get it, if it is not here
    speedup: Speedup | None = None  # over plain decoding
    problem: str = ""  # why that is not known

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        path, speedup = self.path and str(self.path), self.speedup and self.speedup.as_dict()
        return {**asdict(self), "path": path, "speedup": speedup}


def candidates(target: Header, skipped: list[str]) -> list[Candidate]:
    """All drafts for `target`, each file once; `skipped` gets a line for each that does not fit.

    Only a few models with another tokenizer are offered: these draft through their text.
    """
    size = size_on_disk(target.path)
    found: dict[object, Candidate] = {}
    listed = (*_inside(target), *_listed(target), *_on_disk(target, skipped), *_own(target))
    for each in listed:
        if each.size is None or each.size < size or each.kind not in ("plain", "foreign"):
            key = os.path.realpath(each.path) if each.path else each.draft
            found.setdefault(each.kind if each.path == target.path else key, each)
    foreign = [one for one in found.values() if one.kind == "foreign"]
    foreign.sort(key=lambda one: one.size or 0)
    left_out = foreign[:-_MAX_FOREIGN]
    skipped += [f"{one.draft}: another tokenizer, and there are larger ones" for one in left_out]
    return [*(one for one in found.values() if one not in foreign), *foreign[-_MAX_FOREIGN:]]


def _inside(target: Header) -> Iterator[Candidate]:
    for each in drafts_inside(target):
        size = int(share_of_a_pass(target, target) * size_on_disk(target.path))
        yield Candidate(OWN_HEADS, each.where, each.kind, size, each.path)


def _listed(target: Header) -> Iterator[Candidate]:
    for pair in pairs_for(names_of(target)):
        if pair.draft != OWN_HEADS:
            yield _of_pair(pair, target)


def _of_pair(pair: KnownPair, target: Header) -> Candidate:
    origin = f"pair {pair.name}" + (" (unverified)" if pair.status == "unverified" else "")
    path = find_local(pair.draft, "draft")
    with suppress(DSparkError):  # a damaged file counts as missing
        if path is not None and not why_incompatible(target, read_header(path)):
            return of_file(pair.draft, origin, path)
    known = pair.gigabytes("draft")
    size = int(known * 1e9) if known else None
    return Candidate(pair.draft, origin, pair.kind, size, how=f"dspark-gguf pull {pair.draft}")


def _on_disk(target: Header, skipped: list[str]) -> Iterator[Candidate]:
    size = size_on_disk(target.path)
    families = {family_of(name)[0] for name in names_of(target)}
    beside = (
        (str(path), "beside the target", path)
        for path in neighbours(target.path)
        if is_sidecar(path.name) or family_of(path.name)[0] in families
    )
    stored = ((one.name, one.source, one.path) for one in local_files(skipped))
    for name, origin, path in (*beside, *stored):
        try:
            if os.path.samefile(path, target.path):
                continue
            header = read_header(path)
            kind = kind_of_draft(header)
            plain = kind == "plain"
            if plain and size_on_disk(path) >= size:
                continue
            problem = why_incompatible(target, header)
        except (DSparkError, OSError) as error:
            skipped.append(f"{name}: {getattr(error, 'problem', error)}")
            continue
        if not problem:
            yield of_file(name, origin, path)
        elif kind == "plain" and _has_text(header) and size_on_disk(path) < _FOREIGN * size:
            yield replace(of_file(name, origin, path), kind="foreign")
        else:
            skipped.append(f"{name}: {problem}")


def _has_text(header: Header) -> bool:
    """Whether a draft can be used through its text."""
    model = header.metadata.get("tokenizer.ggml.model", "none")
    return not header.other_kind and model != "none"


def of_file(name: str, origin: str, path: Path) -> Candidate:
    """The candidate in a GGUF on this machine."""
    return Candidate(name, origin, kind_of_draft(read_header(path)), size_on_disk(path), path)


def _own(target: Header) -> Iterator[Candidate]:
    size = quantized_size(target, "Q2_K")
    path = _made_path(target.path, "Q2_K")
    if size < _SMALLER * size_on_disk(target.path) and not path.exists():
        yield Candidate(path.name, "made from the target", "plain", size, how="--make-draft Q2_K")


def _made_path(target: Path, file_type: str) -> Path:
    facts = target.stat()
    stamp = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:8]
    return cache_path("drafts") / f"{target.stem}-as-{file_type}-{stamp}.gguf"


def make_draft(target: Path, file_type: str, progress: Progress) -> Path:
    """Another quantization of the target, in the cache folder; made once."""
    path = _made_path(target, file_type)
    if path.exists():
        return path
    header = read_header(target)
    if header.architecture == ARCHITECTURE:
        raise ModelError(f"{target.name} is a draft, not a target", "Name the target with -m.")
    needed, size = quantized_size(header, file_type), size_on_disk(target)
    if needed >= _SMALLER * size:
        problem = f"as {file_type}, {target.name} takes {needed / 1e9:.2f} of {size / 1e9:.2f} GB"
        raise UsageError(f"{problem}: too much for a draft", "Name a lower quantization.")
    require_space(needed, path.parent, "the draft", "XDG_CACHE_HOME")
    progress(f"making {path.name}, about {needed / 1e9:.2f} GB, in {path.parent}")
    with caching(path) as temporary:
        quantize(target, temporary, file_type)
    return path


def suggestions(
    target: Path,
    drafts: Sequence[Candidate],
    settings: Settings,
    watch: Callable[[Sequence[Candidate | None]], Iterable[Candidate | None]] = iter,
) -> list[Candidate]:
    """The speed to expect from each draft, the best first; what is here is measured.

    `watch` may show progress: it gets None for the target alone, then the drafts. After Ctrl-C,
    what is left is estimated.
    """
    if not drafts:
        return []
    size, over = size_on_disk(target), [1.0]
    work = iter(watch([None, *(each for each in drafts if each.path is not None)]))
    next(work)
    costs, _ = _measured(target, None, settings)
    found: list[Candidate] = []
    with suppress(KeyboardInterrupt):
        for draft in work:
            if draft is None or draft.path is None:
                continue
            try:
                own, speedup = _measured(target, draft.path, settings)
            except DSparkError as error:
                found.append(replace(draft, problem=error.problem))
            else:
                found.append(replace(draft, speedup=speedup))
                if draft.kind == "plain":
                    over.append(own.draft_seconds[0] / _step(draft, own, size))
    done = {each.draft for each in found}
    found += [_estimated(each, costs, size, max(over)) for each in drafts if each.draft not in done]
    return sorted(found, key=_rank)


def _rank(draft: Candidate) -> tuple[bool, bool, bool, float]:
    """Drafts that pay come first, measured before estimated, faster before slower.

    Drafts with another tokenizer come after all others.
    """
    if draft.speedup is None:
        return True, True, True, 0.0
    speedup = draft.speedup
    return draft.kind == "foreign", not speedup.pays, draft.path is None, -speedup.typical


def _measured(target: Path, draft: Path | None, settings: Settings) -> tuple[LearnedCosts, Speedup]:
    """A pair's costs, as the first `chat` would learn them, and the speedup `doctor` would show."""
    pair = Pair(target, draft, settings.target_options, settings.draft_options)
    with pair:
        if draft is not None and pair.draft_cache() is None:
            raise DSparkError("; ".join(pair.notes), "Choose another draft.")
        costs = pair.learned(settings.speculation).costs
        here = speedup_here(pair, settings)
        is_forecast = here.basis != "measured"
        if draft is not None and is_forecast and is_hopeless(costs, settings.speculation):
            most = min(settings.speculation.max_draft_steps, pair.max_drafts)
            here = expected(costs, costs.draft_seconds[:most])  # copies alone might pay
        return costs, here


def _step(draft: Candidate, costs: LearnedCosts, target_size: int) -> float:
    """A pass mostly reads the weights, so its seconds are in proportion to the size."""
    return float(costs.target_seconds[0]) * (draft.size or 0) / target_size


def _estimated(
    draft: Candidate, costs: LearnedCosts, target_size: int, over: float = 1.0
) -> Candidate:
    """Estimate by size; `over` is by what factor measured drafts cost more than their sizes say."""
    if draft.size is None:
        return replace(draft, problem="size not known")
    step = over * _step(draft, costs, target_size)
    most = BLOCK if draft.kind in ("dspark", "dflash") else _STEPS
    seconds = draft_seconds(draft.kind, step, most)
    return replace(draft, speedup=expected(costs, seconds, "estimated", draft.kind))


def as_text(target: str, found: Sequence[Candidate]) -> str:
    """A table, and what to do next."""
    if not found:
        return (
            f"no draft for {target} in the list or on this machine. Without one, what the "
            "conversation already said is still copied where that pays."
        )
    table = f"drafts for {target}, with the speed to expect in times plain decoding:"
    for each in found:
        size = "? GB" if each.size is None else f"{each.size / 1e9:.2f} GB"
        known = each.speedup
        said = f"{known.figures} ({known.basis})" if known else each.problem
        table += f"\n\n  {visible(each.draft)}\n    {said}; {size}, {visible(each.origin)}"
    usual = ", ".join(
        f"{low:.0%}-{high:.0%} on {kind}" for kind, (low, high) in USUAL_AGREEMENT.items()
    )
    return (
        f"{table}\n\n{_advice(target, found)}\n\n"
        "measured: half of the answers were in the range. expected: from what passes "
        "cost here (--no-learn measures again). estimated: from the sizes of the files. "
        f"Both if guesses are as good as usual: {usual} are right."
    )


def _advice(target: str, found: Sequence[Candidate]) -> str:
    best = found[0]
    if best.speedup is None or best.speedup.doubt:
        return f"no verdict: {best.speedup.doubt if best.speedup else best.problem}"
    if not best.speedup.pays:
        return "none of them pays on this machine: use the target without a draft"
    use = f"\n    dspark-gguf chat -m {target} -d {quote(best.draft)}"
    if best.how.startswith("--"):
        return f"make the best:\n    dspark-gguf suggest -m {target} {best.how}"
    if best.path is None:
        return f"get the best:\n    {best.how}\nuse it:{use}"
    return f"use the best:{use}"
