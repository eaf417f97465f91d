"""The pairs of ``models.txt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import shipped

MEMORY = ("any", "8", "16", "32", "64")
KINDS = ("plain", "dspark")
STATUS = ("tested", "seen", "unverified")


@dataclass(frozen=True, slots=True)
class KnownPair:
    """One line of the list; the fields are explained at its top."""

    name: str
    memory: str
    target: str
    draft: str
    kind: str
    status: str
    note: str


def known_pairs(path: Path | None = None) -> list[KnownPair]:
    """All pairs of `path`, default the shipped list, in its order.

    Raises:
        UsageError: naming the first line that does not fit the format.

    """
    path = path or shipped("models.txt")
    pairs: list[KnownPair] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        problem = _problem(fields, {pair.name for pair in pairs})
        if problem:
            raise UsageError(
                f"name | memory | target | draft | kind | status | note in line {number} of "
                f"{path.name}",
                problem,
                "see the top of the file",
            )
        pairs.append(KnownPair(*fields))
    return pairs


def _problem(fields: list[str], names: set[str]) -> str | None:
    if len(fields) != 7:
        return f"{len(fields)} fields"
    name, memory, target, draft, kind, status, _ = fields
    if not (name and target and draft):
        return "an empty field"
    if name in names:
        return f"the name {name!r} again"
    for value, known in ((memory, MEMORY), (kind, KINDS), (status, STATUS)):
        if value not in known:
            return f"{value!r}, not one of {', '.join(known)}"
    return None
