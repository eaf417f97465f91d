"""The pairs of ``models.txt``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from dspark_gguf.errors import UsageError, reason_of
from dspark_gguf.naming import family_of
from dspark_gguf.paths import packaged

_CHOICES = {
    "memory": ("any", "8", "16", "32", "64"),
    "kind": ("plain", "dspark", "dflash", "mtp", "eagle3"),
    "status": ("tested", "seen", "unverified"),
}
#: Stands for a draft that is the target's own prediction heads.
OWN_HEADS = "mtp"
#: GB of the target and the draft; ?: not known.
_GIGABYTES = r"(\?|(?=[\d.]*[1-9])\d+(\.\d+)?)"
_SIZE = re.compile(rf"{_GIGABYTES} *\+ *{_GIGABYTES}")


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

    def is_called(self, name: str) -> bool:
        """Whether a user means it: case does not count."""
        return self.name == name.lower()

    def model(self, role: str) -> str:
        """The name of its ``target`` or ``draft``."""
        return self.draft if role == "draft" else self.target

    def gigabytes(self, role: str) -> float | None:
        """Size of its ``target`` or ``draft``, where it is known."""
        number = self.size.split("+")[role == "draft"].strip()
        return None if number == "?" else float(number)


def known_pairs(path: Path | None = None) -> list[KnownPair]:
    """All pairs in `path`, by default the shipped list; a UsageError names the first wrong line."""
    path = path or packaged("models.txt")
    pairs: list[KnownPair] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fault = f"cannot read the list of pairs {path}: {reason_of(error)}"
        raise UsageError(fault, "Check it.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        values = [value.strip() for value in line.split("|")]
        if problem := _problem(values, {pair.name for pair in pairs}):
            raise UsageError(
                f"line {number} of {path.name} has {problem}",
                f"Write {' | '.join(field.name for field in fields(KnownPair))}, as explained at "
                "the top of the file.",
            )
        pairs.append(KnownPair(*values))
    return pairs


def known_pair(name: str | Path) -> KnownPair | None:
    """The pair called `name`; None if there is none, or a file has this name."""
    if os.path.isfile(name):
        return None
    return next((pair for pair in known_pairs() if pair.is_called(str(name))), None)


def pairs_for(names: Iterable[str]) -> list[KnownPair]:
    """Pairs whose draft may fit a target with these names: its own first, then its family's."""
    ours = {family_of(name) for name in names} - {("", "")}
    families = {family for family, size in ours if size}
    found = []
    for pair in known_pairs():
        theirs = family_of(pair.target)
        # Plain models draft for a family, the others for the very target that they were made for.
        same = theirs[0] in families if pair.kind == "plain" else theirs in ours
        if same and not pair.target.startswith("package:"):
            found.append(pair)
    return sorted(found, key=lambda pair: family_of(pair.target) not in ours)


def similar_names(name: str) -> str:
    """Names of pairs that may have been meant, in brackets; empty without any."""
    close = difflib.get_close_matches(name.lower(), [pair.name for pair in known_pairs()], 3)
    return f" (similar: {', '.join(close)})" if close else ""


def _problem(values: list[str], names: set[str]) -> str | None:
    if len(values) != len(fields(KnownPair)):
        return f"{len(values)} fields"
    pair = KnownPair(*values)
    if not (pair.name and pair.target and pair.draft and pair.licence):
        return "an empty field"
    if pair.name in names:
        return f"the name {pair.name!r} again"
    if pair.name != pair.name.lower() or set(pair.name) & set("/\\: "):
        return f"the name {pair.name!r}, not in small letters without / \\ : and spaces"
    for field, known in _CHOICES.items():
        if getattr(pair, field) not in known:
            return f"the {field} {getattr(pair, field)!r}, not one of {', '.join(known)}"
    if not _SIZE.fullmatch(pair.size):
        return f"the size {pair.size!r}, not such as '4.8 + 0.64' or '4.8 + ?'"
    return None
