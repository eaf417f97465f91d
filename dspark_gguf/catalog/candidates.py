"""Models that may draft for a target: from the list, on this machine, or made from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dspark_gguf.catalog.demo import Progress
from dspark_gguf.catalog.local import local_models
from dspark_gguf.catalog.pairs import KnownPair, known_pairs
from dspark_gguf.catalog.resolve import is_here
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.dflash import ARCHITECTURE
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.quantize import quantize, quantized_size
from dspark_gguf.errors import DSparkError, ModelError, ResourceError
from dspark_gguf.naming import QUANTIZATION
from dspark_gguf.paths import cache_dir, replacing, size_on_disk, unwritable

#: A quantization of the target is offered as a draft if its share of the size is below this.
_SMALLER = 0.9
_GB = 1e9
_SIZE = re.compile(r"\d+(\.\d+)?[bm]|a\d+(\.\d+)?b")
_DATE = re.compile(r"\d{4}")
_NOT_THE_FAMILY = {"gguf", "instruct", "it", "chat", "meta", "qat", "base", "ud"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may draft.

    Attributes:
        name: what to write after -d.
        origin: where it comes from, in words.
        kind: ``plain`` or ``dspark``.
        size: bytes; None: not known.
        path: its file; None: not on this machine.
        how: what to do to get it, if it is not here.

    """

    name: str
    origin: str
    kind: str
    size: int | None
    path: Path | None = None
    how: str = ""


def candidates(target: Header, skipped: list[str]) -> list[Candidate]:
    """All of them, each file once.

    Args:
        target: the model that they draft for.
        skipped: gets a line for each file on disk that does not fit.

    """
    size = size_on_disk(target.path)
    found: dict[object, Candidate] = {}
    for each in (*_listed(target), *_on_disk(target, skipped), *_own(target)):
        if each.size is None or each.size < size:
            found.setdefault(os.path.realpath(each.path) if each.path else each.name, each)
    return list(found.values())


def family_of(name: str) -> tuple[str, str]:
    """Family and size in a model's name: ``("qwen2.5-coder", "7b")``."""
    name = name.rpartition("/")[2].partition(":")[0].lower().removesuffix(".gguf")
    words = [word for word in re.split(r"[-_ ]+", QUANTIZATION.sub("", name)) if word]
    sizes = [word for word in words if _SIZE.fullmatch(word)]
    left_out = {*sizes, *_NOT_THE_FAMILY}
    rest = [word for word in words if word not in left_out and not _DATE.fullmatch(word)]
    return "-".join(rest), "-".join(sizes)


def _listed(target: Header) -> Iterator[Candidate]:
    names = {target.path.name, str(target.metadata.get("general.name", ""))}
    ours = {family_of(name) for name in names} - {("", "")}
    families = {family for family, size in ours if size}
    for pair in known_pairs():
        theirs = family_of(pair.target)
        same = theirs in ours if pair.kind == "dspark" else theirs[0] in families
        if same and not pair.target.startswith("package:"):
            yield _of_pair(pair, target)


def _of_pair(pair: KnownPair, target: Header) -> Candidate:
    origin = f"pair {pair.name}" + (" (unverified)" if pair.status == "unverified" else "")
    path = is_here(pair.draft, "draft")
    with contextlib.suppress(DSparkError):  # a damaged file counts as missing
        if path is not None and not why_incompatible(target, read_header(path)):
            return of_file(pair.draft, origin, path)
    known = pair.gigabytes("draft")
    size = int(known * _GB) if known else None
    return Candidate(pair.draft, origin, pair.kind, size, how=f"dspark-gguf pull {pair.draft}")


def _on_disk(target: Header, skipped: list[str]) -> Iterator[Candidate]:
    size = size_on_disk(target.path)
    for model in local_models(skipped):
        if model.size >= size:
            continue
        try:
            problem = why_incompatible(target, read_header(model.path))
        except (DSparkError, OSError) as error:
            problem = str(getattr(error, "problem", error))
        if problem:
            skipped.append(f"{model.name}: {problem}")
        else:
            yield of_file(model.name, model.source, model.path)


def of_file(name: str, origin: str, path: Path) -> Candidate:
    """A file on this machine.

    Raises:
        UsageError, ModelError: it is not a GGUF.

    """
    kind = "dspark" if read_header(path).architecture == ARCHITECTURE else "plain"
    return Candidate(name, origin, kind, size_on_disk(path), path)


def _own(target: Header) -> Iterator[Candidate]:
    size = quantized_size(target, "Q2_K")
    path = _made_path(target.path, "Q2_K")
    if size < _SMALLER * size_on_disk(target.path) and not path.exists():
        yield Candidate(path.name, "made from the target", "plain", size, how="--make-draft Q2_K")


def _made_path(target: Path, file_type: str) -> Path:
    facts = target.stat()
    stamp = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:8]
    return cache_dir("drafts") / f"{target.stem}-as-{file_type}-{stamp}.gguf"


def make_draft(target: Path, file_type: str, progress: Progress) -> Path:
    """Another quantization of the target, in the cache folder; made once.

    Raises:
        ModelError: the target is a block draft.
        ResourceError: not enough room on the disk.
        EngineError: llama.cpp failed.

    """
    path = _made_path(target, file_type)
    if path.exists():
        return path
    header = read_header(target)
    if header.architecture == ARCHITECTURE:
        raise ModelError(f"{target.name} is a draft, not a target", "Name the target with -m.")
    needed, free = quantized_size(header, file_type), shutil.disk_usage(path.parent).free
    if needed > free:
        raise ResourceError(
            f"the draft takes {needed / _GB:.1f} GB, but {path.parent} has {free / _GB:.1f} GB of "
            "free space",
            "Free some, or set XDG_CACHE_HOME to a folder on a larger disk.",
        )
    progress(f"making {path.name}, about {needed / _GB:.2f} GB, in {path.parent}")
    try:
        with replacing(path) as temporary:
            quantize(target, temporary, file_type)
    except OSError as error:
        raise unwritable(path.parent, error) from None
    return path
