"""A report in sections: each check that fails becomes a line, and the rest goes on."""

from __future__ import annotations

import getpass
import re
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dspark_gguf.errors import DSparkError

_WIDTH, _INDENT = 100, 11


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, or could be better.

    Attributes:
        needed: as in ``errors``.
        got: what there is instead.
        do: an imperative.
        wrong: false: all works, but it could be faster.
        code: exit code that it leads to when it is wrong.

    """

    needed: str
    got: str
    do: str
    wrong: bool = True
    code: int = 1

    def __str__(self) -> str:
        return f"{'!' if self.wrong else '-'} needed {self.needed}, got {self.got}; {self.do}"


@dataclass(frozen=True, slots=True)
class Section:
    """What one check found.

    Attributes:
        text: for a person; several lines are kept as they are, an empty one is left out.
        facts: the same as plain values.
        findings: what is wrong or could be better.
        value: for the checks that come after it; not part of the report.

    """

    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    value: Any = None


class Report:
    """Sections by name, in the order of the checks.

    Args:
        on_error: called with every exception that a check ended with.

    """

    def __init__(self, on_error: Callable[[Exception], object] = lambda error: None) -> None:
        self.sections: dict[str, Section] = {}
        self._on_error = on_error

    def check(self, name: str, work: Callable[[], Section]) -> Any:
        """Do one check; returns the section's value, None where the check failed."""
        try:
            self.sections[name] = section = work()
        except Exception as error:
            self._on_error(error)
            self.sections[name] = Section("failed", findings=(_finding(error),))
            return None
        return section.value

    @property
    def findings(self) -> list[Finding]:
        """Of all sections."""
        return [finding for section in self.sections.values() for finding in section.findings]

    @property
    def exit_code(self) -> int:
        """0: nothing is wrong; 3: the models do not fit each other; 1: something else."""
        codes = {finding.code for finding in self.findings if finding.wrong}
        return 3 if 3 in codes else 1 if codes else 0

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, without private names."""
        sections = {
            name: {
                "text": section.text,
                **section.facts,
                "findings": [asdict(finding) for finding in section.findings],
            }
            for name, section in self.sections.items()
        }
        tree = {"well": self.exit_code == 0, "exit_code": self.exit_code, "sections": sections}
        return discreet(tree)  # type: ignore[no-any-return]

    def as_text(self) -> str:
        """One screen, without private names."""
        lines = [_block(name, section.text) for name, section in self.sections.items()
                 if section.text]  # fmt: skip
        found = sorted(self.findings, key=lambda finding: not finding.wrong)
        wrong = sum(finding.wrong for finding in found)
        lines += [
            textwrap.fill(str(finding), _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
            for finding in found
        ]
        better = len(found) - wrong
        parts = [f"{wrong} wrong (!)"] * bool(wrong) + [f"{better} to improve (-)"] * bool(better)
        lines.append(
            f"{'not well' if wrong else 'well'}: {', '.join(parts) or 'nothing to change'}"
        )
        return str(discreet("\n".join(lines)))


def _block(name: str, text: str) -> str:
    head = f"{name:<{_INDENT}}"
    if "\n" in text:
        return head + text.replace("\n", "\n" + " " * _INDENT)
    return textwrap.fill(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * _INDENT, break_on_hyphens=False
    )


def _finding(error: Exception) -> Finding:
    if isinstance(error, DSparkError):
        return Finding(error.needed, error.got, error.do, code=error.exit_code)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
    got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place})"
    return Finding("a check that ends", got, "report this; --debug shows where")


def discreet(value: Any) -> Any:
    """The same without the home directory and the user's name in paths."""
    if isinstance(value, dict):
        return {key: discreet(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [discreet(inner) for inner in value]
    if not isinstance(value, str):
        return value
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/", ""}:
        value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
    name = _user()
    return re.sub(rf"(?<=[/\\]){re.escape(name)}(?=[/\\])", "USER", value) if name else value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry for this number, as in containers
        return ""
