"""Drafts for a target that are on this machine, and which of them should be fastest here.

A draft may be inside the target's file (prediction heads), beside it, in another program's folder,
or listed with it in ``models.txt``. Measurements on this machine decide; without any, the sizes of
the files and how often guesses of this kind are usually right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspark_gguf import hub
from dspark_gguf.arrays import Floats
from dspark_gguf.catalog.local import files_here, find_local
from dspark_gguf.catalog.pairs import pairs_for
from dspark_gguf.config import Speculation
from dspark_gguf.engine import library
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.dflash import ARCHITECTURE
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.heads import ASSISTANT, EAGLE3, kind_of, why_no_heads
from dspark_gguf.engine.kinds import NAMES, kind_of_draft, max_guesses, share_of_a_pass
from dspark_gguf.engine.model import file_stamp
from dspark_gguf.errors import DSparkError
from dspark_gguf.learned import Learned, learned_of
from dspark_gguf.naming import SIDECARS, family_of, is_sidecar
from dspark_gguf.schedule.expected import is_hopeless
from dspark_gguf.speedup import Speedup, expected, forecast, usual

#: Headers of files not named as sidecars are read only if there are at most this many, since each
#: takes up to a tenth of a second.
_FEW = 8
#: A file that holds only heads has fewer tensors, a whole model has more.
_TENSORS = 100
#: What each further row adds to a pass on an unmeasured machine: with a GPU, without one.
_ROW = (0.02, 0.25)
_ROWS = 17
#: Guesses in a block whose file is not here: published drafts have 7.
BLOCK = 7


@dataclass(frozen=True, slots=True)
class LocalDraft:
    """A draft on this machine."""

    path: Path
    kind: str  # one of `NAMES`
    where: str  # in words


def names_of(target: Header) -> set[str]:
    """Names of a target: its file's, and the one in its header."""
    return {target.path.name, str(target.metadata.get("general.name", ""))}


def drafts_here(target: Header, unfit: list[str] | None = None) -> list[LocalDraft]:
    """All drafts that fit `target`, each file once; `unfit` gets a line about each other one."""
    found: dict[str, LocalDraft] = {}
    for each in (*drafts_inside(target), *_beside(target), *_in_stores(target), *_listed(target)):
        with suppress(OSError, DSparkError):  # a damaged file, or one that vanished meanwhile
            is_own = each.path == target.path
            problem = "" if is_own else why_incompatible(target, read_header(each.path))
            if not problem:
                found.setdefault(os.path.realpath(each.path), each)
            elif unfit is not None:
                unfit.append(f"{each.path.name} {each.where}: {problem}")
    return list(found.values())


def choose(target: Header, found: Sequence[LocalDraft]) -> tuple[LocalDraft | None, str]:
    """The draft that should be fastest here, or None if none pays, and a sentence that says why."""
    if not found:
        return None, ""
    known = learned_of(file_stamp(target.path), library.machine())
    (best, chosen), *others = sorted(
        ((_speedup(each, target, known), each) for each in found),
        key=lambda one: one[0].typical if one[0] else 0.0,
        reverse=True,
    )
    if best is None:
        names = ", ".join(f"{each.path.name} ({NAMES[each.kind]})" for each in found)
        return None, f"no draft is used: {names} would win nothing here even if always right"
    line = f"draft found {chosen.where}: {_called(chosen, target)}, {_words(best)}"
    if others:
        rest = ", ".join(f"{_called(each, target)} ({_words(one)})" for one, each in others)
        line += f"; expected to be faster here than {rest}"
    return chosen, f"{line}; --draft none does without"


def find_draft(target: Path) -> tuple[Path | None, str]:
    """As `choose`, for a file. If it is not a target, nothing: opening it will say why."""
    try:
        header = read_header(target)
        if kind_of(header) != "model" or header.other_kind:
            return None, ""
    except DSparkError:
        return None, ""
    unfit: list[str] = []
    chosen, line = choose(header, drafts_here(header, unfit))
    if not line and unfit:
        line = f"no draft is used: {'; '.join(unfit)}"
    return chosen.path if chosen else None, line


def _words(speedup: Speedup | None) -> str:
    return f"{speedup.figures}, {speedup.source}" if speedup else "too slow here, as measured"


def _called(draft: LocalDraft, target: Header) -> str:
    inside = draft.path == target.path
    return f"its own {NAMES['mtp']} head" if inside else f"{draft.path.name} ({NAMES[draft.kind]})"


def drafts_inside(target: Header) -> Iterator[LocalDraft]:
    """The target's own prediction heads, if it has any that llama.cpp can run."""
    if target.heads and not why_no_heads(target):
        yield LocalDraft(target.path, "mtp", "inside the model")


def _beside(target: Header) -> Iterator[LocalDraft]:
    """Drafts in the model's folder or repository, by name, or by header if the files are few."""
    own = os.path.realpath(target.path)
    files = [path for path in neighbours(target.path) if os.path.realpath(path) != own]
    others = [path for path in files if not is_sidecar(path.name) and _may_be_a_draft(path)]
    few = others if len(others) <= _FEW else []
    for path in (*(path for path in files if is_sidecar(path.name)), *few):
        with suppress(OSError, DSparkError):
            header = read_header(path)
            if kind_of(header) != "model":
                yield LocalDraft(path, kind_of_draft(header), "beside the model")


def _may_be_a_draft(path: Path) -> bool:
    """Guess from a file's first bytes: the number of tensors, and the architecture."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(256)
        return int.from_bytes(head[8:16], "little") < _TENSORS or any(
            name.encode() in head for name in (ARCHITECTURE, EAGLE3, ASSISTANT)
        )
    return False


def neighbours(path: Path) -> Iterator[Path]:
    """GGUF files in the same repository, or in the same folder and its folders for sidecars."""
    # Of the hub's cache: models--ORG--REPO/snapshots/REVISION/...
    root = next((each for each in path.parents if each.parent.name == "snapshots"), None)
    if root is not None and root.parents[1].name.startswith("models--"):
        yield from (root / name for name in hub.files_of(root) if name.lower().endswith(".gguf"))
        return
    kinds = tuple(kind.rstrip("-") for kind in SIDECARS)
    with suppress(OSError):
        folders = [each for each in path.parent.iterdir() if each.name.lower().startswith(kinds)]
        for folder in (path.parent, *(each for each in sorted(folders) if each.is_dir())):
            yield from sorted(
                each for each in folder.iterdir()
                if each.name.lower().endswith(".gguf") and each.is_file()
            )  # fmt: skip


def _in_stores(target: Header) -> Iterator[LocalDraft]:
    """Sidecars of the target's family and size in other programs' folders."""
    ours = {family_of(name) for name in names_of(target)} - {("", "")}
    for file in files_here():
        if is_sidecar(file.path.name) and family_of(file.path.name) in ours:
            with suppress(OSError, DSparkError):
                yield LocalDraft(
                    file.path, kind_of_draft(read_header(file.path)), f"in {file.source}"
                )


def _listed(target: Header) -> Iterator[LocalDraft]:
    for pair in pairs_for(names_of(target)):
        with suppress(OSError, DSparkError):
            if path := find_local(pair.draft, "draft"):
                header = read_header(path)
                yield LocalDraft(path, kind_of_draft(header), f"in the list, as {pair.name}")


def _speedup(draft: LocalDraft, target: Header, known: Sequence[Learned]) -> Speedup | None:
    """The speedup by what was learned of this draft, of this target with others, or of neither.

    None: as measured, it would win nothing even if it were always right.
    """
    header = read_header(draft.path)
    most = max_guesses(header, target)
    stamp = file_stamp(draft.path)
    own = next((one for one in reversed(known) if one.about.get("draft") == stamp), None)
    if own is not None and own.costs.covers(1, drafts=True):
        if is_hopeless(own.costs, Speculation()):
            return None
        seconds = own.costs.draft_seconds[:most]
        return forecast(own.costs, own.best_known, most) or expected(
            own.costs, seconds, kind=draft.kind
        )
    covered = [one.costs for one in reversed(known) if one.costs.covers(1, drafts=False)]
    passes = covered[0].target_seconds[:_ROWS] if covered else _typical_passes()
    step = float(passes[0]) * share_of_a_pass(header, target)
    return usual(passes, draft_seconds(draft.kind, step, most), draft.kind)


def draft_seconds(kind: str, step: float, most: int = BLOCK) -> Floats:
    """Seconds of 1, 2, ... guesses at `step` seconds each; a block's guesses come together."""
    count: Floats = np.arange(1.0, most + 1.0, dtype=np.float64)
    return step * (np.ones(most) if kind in ("dspark", "dflash") else count)


def _typical_passes() -> Floats:
    """Seconds of a pass of 1, 2, ... rows, as multiples of one row."""
    curve: Floats = 1.0 + _ROW[not library.can_offload()] * np.arange(_ROWS, dtype=np.float64)
    return curve


def estimated_speed(kind: str, size: int, target_size: int) -> float:
    """The speedup of a sidecar that is still on the hub, by its kind and size alone."""
    return usual(_typical_passes(), draft_seconds(kind, size / max(target_size, 1)), kind).typical
