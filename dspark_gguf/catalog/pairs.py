"""The pairs of ``models.txt``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import shipped

MEMORY = ("any", "8", "16", "32", "64")
KINDS = ("plain", "dspark")
STATUS = ("tested", "seen", "unverified")
_FIELDS = "name | memory | target | draft | kind | size | licence | status | note"


@dataclass(frozen=True, slots=True)
class KnownPair:
    """One line of the list; the fields are explained at its top."""

    name: str
    memory: str
    target: str
    draft: str
    kind: str
    size: str
    licence: str
    status: str
    note: str

    def model(self, role: str) -> str:
        """The name of its ``target`` or ``draft``."""
        return self.draft if role == "draft" else self.target

    def gigabytes(self, role: str) -> float | None:
        """Size of its ``target`` or ``draft``, where it is known."""
        number = self.size.split("+")[role == "draft"].strip()
        return None if number == "?" else float(number)

    def licence_of(self, role: str) -> str:
        """Of its ``target`` or ``draft``."""
        both = self.licence.split(" + ")
        return both[-1 if role == "draft" else 0]


def known_pairs(path: Path | None = None) -> list[KnownPair]:
    """All pairs of `path`, default the shipped list, in its order.

    Raises:
        UsageError: naming the first line that does not fit the format.

    """
    path = path or shipped("models.txt")
    pairs: list[KnownPair] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"a list of pairs in {path}", str(error), "check the file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        problem = _problem(fields, {pair.name for pair in pairs})
        if problem:
            raise UsageError(
                f"{_FIELDS} in line {number} of {path.name}", problem, "see the top of the file"
            )
        pairs.append(KnownPair(*fields))
    return pairs


def pair_named(name: str) -> KnownPair | None:
    """The pair of this name, or None."""
    return next((pair for pair in known_pairs() if pair.name == name.lower()), None)


def similar_names(name: str) -> str:
    """Names of pairs that may have been meant."""
    names = [pair.name for pair in known_pairs()]
    close = difflib.get_close_matches(name.lower(), names, 3)
    return ", ".join(close) or "none that is similar"


def _problem(fields: list[str], names: set[str]) -> str | None:
    if len(fields) != 9:
        return f"{len(fields)} fields"
    name, memory, target, draft, kind, size, licence, status, _ = fields
    if not (name and target and draft and licence):
        return "an empty field"
    if name in names:
        return f"the name {name!r} again"
    if name != name.lower() or set(name) & set("/\\: "):
        return f"the name {name!r}, not in small letters without / \\ : and spaces"
    for value, known in ((memory, MEMORY), (kind, KINDS), (status, STATUS)):
        if value not in known:
            return f"{value!r}, not one of {', '.join(known)}"
    if not _are_sizes(size.split("+")):
        return f"the size {size!r}, not such as '4.8 + 0.64' or '4.8 + ?'"
    return None


def _are_sizes(sizes: list[str]) -> bool:
    try:
        return len(sizes) == 2 and all(
            size.strip() == "?" or 0 < float(size) < float("inf") for size in sizes
        )
    except ValueError:
        return False
