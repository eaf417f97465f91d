"""Drafts that fit a target, listed, on this machine or made of it, and the speed to expect."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dspark_gguf.catalog.demo import Progress
from dspark_gguf.catalog.found import drafts_inside, names_of, neighbours
from dspark_gguf.catalog.kinds import kind_of_draft, share_of_a_pass
from dspark_gguf.catalog.listing import as_table, quote
from dspark_gguf.catalog.local import local_files
from dspark_gguf.catalog.pairs import OWN_HEADS, KnownPair, pairs_for
from dspark_gguf.catalog.resolve import find_local
from dspark_gguf.config import Settings
from dspark_gguf.cost import LearnedCosts
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.dflash import ARCHITECTURE
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.quantize import quantize, quantized_size
from dspark_gguf.errors import DSparkError, ModelError
from dspark_gguf.naming import family_of, is_sidecar
from dspark_gguf.paths import cache_path, caching, require_space, size_on_disk
from dspark_gguf.schedule.expected import USUAL_AGREEMENT, expected_ranges, ranges_text

#: A quantization of the target is offered as a draft if its share of the size is below this.
_SMALLER = 0.9
#: Of drafts with another tokenizer, the largest that have at most this share of the target's size.
_FOREIGN, _MOST_FOREIGN = 1 / 8, 3
#: Guesses of a DSpark draft whose file is not here: blocks of 7 are what is published.
_BLOCK = 7


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may draft, and the speed to expect from it."""

    draft: str  # what to write after -d
    origin: str  # where it comes from, in words
    kind: str  # see `kinds.NAMES`
    size: int | None  # bytes; None: not known
    path: Path | None = None  # None: not on this machine
    how: str = ""  # to get it, if it is not here
    #: Least and most speed over plain decoding by kind of text; None: not known.
    expected: dict[str, tuple[float, float]] | None = None
    basis: str = ""  # measured, estimated, or why there is no number

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "path": self.path and str(self.path)}


def candidates(target: Header, skipped: list[str]) -> list[Candidate]:
    """All drafts for `target`, each file once; `skipped` gets a line for each that does not fit.

    Of models with another tokenizer there are few: they draft through their text.
    """
    size = size_on_disk(target.path)
    found: dict[object, Candidate] = {}
    listed = (*_inside(target), *_listed(target), *_on_disk(target, skipped), *_own(target))
    for each in listed:
        if each.size is None or each.size < size or each.kind not in ("plain", "foreign"):
            key = each.kind if each.path == target.path else _key(each)
            found.setdefault(key, each)
    foreign = sorted((one for one in found.values() if one.kind == "foreign"), key=_size)
    left_out = foreign[:-_MOST_FOREIGN]
    skipped += [f"{one.draft}: another tokenizer, and there are larger ones" for one in left_out]
    return [
        *(one for one in found.values() if one.kind != "foreign"),
        *foreign[-_MOST_FOREIGN:],
    ]


def _key(draft: Candidate) -> str:
    return os.path.realpath(draft.path) if draft.path else draft.draft


def _size(draft: Candidate) -> int:
    return draft.size or 0


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
    """Whether a draft can be used through its text alone."""
    model = header.metadata.get("tokenizer.ggml.model", "none")
    return not header.other_kind and model != "none"


def of_file(name: str, origin: str, path: Path) -> Candidate:
    """A GGUF on this machine."""
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
    needed = quantized_size(header, file_type)
    require_space(needed, path.parent, "the draft", "XDG_CACHE_HOME")
    progress(f"making {path.name}, about {needed / 1e9:.2f} GB, in {path.parent}")
    with caching(path) as temporary:
        quantize(target, temporary, file_type)
    return path


def suggestions(
    target: Path, drafts: Sequence[Candidate], settings: Settings, progress: Progress
) -> list[Candidate]:
    """The speed to expect from each draft, the best first."""
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
            found.append(replace(draft, basis=error.problem))
        else:
            ours = own.target_seconds, own.draft_seconds[:most]
            expected = expected_ranges(*ours, draft.kind)
            found.append(replace(draft, expected=expected, basis="measured"))
    return sorted(found, key=_rank)


def _rank(draft: Candidate) -> tuple[bool, float]:
    """The fastest first; those with another tokenizer behind all others."""
    return draft.kind == "foreign", -sum(map(sum, (draft.expected or {}).values()))


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
        return learned.costs, min(settings.speculation.max_draft_steps, pair.most_drafts)


def _estimated(draft: Candidate, costs: LearnedCosts, target_size: int) -> Candidate:
    """A pass mostly reads the weights, so its seconds are in proportion to the size."""
    if draft.size is None:
        return replace(draft, basis="size not known")
    target = costs.target_seconds
    step = float(target[0]) * draft.size / target_size
    is_block = draft.kind in ("dspark", "dflash")
    draft_seconds = np.full(_BLOCK, step) if is_block else step * np.arange(1, 13)
    expected = expected_ranges(target, draft_seconds, draft.kind)
    return replace(draft, expected=expected, basis="estimated")


def as_text(target: str, found: Sequence[Candidate]) -> str:
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
                each.draft,
                "?" if each.size is None else f"{each.size / 1e9:.2f}",
                each.origin,
                ranges_text(each.expected) if each.expected else "-",
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


def _advice(target: str, found: Sequence[Candidate]) -> str:
    best = next((each for each in found if each.expected), None)
    if best is None or max(high for _, high in (best.expected or {}).values()) < 1.05:
        return "none of them pays on this machine: use the target without a draft"
    use = f"dspark-gguf chat -m {target} -d {quote(best.draft)}"
    if best.how.startswith("--"):
        return f"make the best: dspark-gguf suggest -m {target} {best.how}"
    if best.path is None:
        return f"get the best: {best.how}; use it: {use}"
    return f"use the best: {use}"
