"""A report in sections: a failed check becomes a line, and the other checks go on."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dspark_gguf import paths
from dspark_gguf.errors import DSparkError
from dspark_gguf.visible import counted

_WIDTH, _INDENT = 100, 11


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, or a suggestion; `problem` and `hint` are as in ``errors``."""

    problem: str
    hint: str
    wrong: bool = True  # False: all works, but it could be faster
    code: int = 1  # the exit code it leads to when it is wrong

    def __str__(self) -> str:
        return f"{'!' if self.wrong else '-'} {self.problem}. {self.hint}"


@dataclass(frozen=True, slots=True)
class Section:
    """What one check found."""

    text: str  # for a person; line breaks are kept, an empty text is left out
    facts: dict[str, Any] = field(default_factory=dict)  # the same as plain values
    findings: tuple[Finding, ...] = ()
    value: Any = None  # for later checks; not part of the report


@dataclass
class Report:
    """Sections by name, in the order of the checks.

    `on_error` gets each exception that ended a check, `on_check` each check's name as it begins.
    """

    on_error: Callable[[Exception], object] = lambda error: None
    on_check: Callable[[str], object] = lambda name: None
    sections: dict[str, Section] = field(default_factory=dict)

    def check(self, name: str, work: Callable[..., Section], *args: Any) -> Any:
        """Do one check; returns its section's value, or None if it failed."""
        self.on_check(name)
        try:
            self.sections[name] = section = work(*args)
        except Exception as error:
            self.on_error(error)
            self.sections[name] = Section("failed", findings=(_finding(error),))
            return None
        return section.value

    @property
    def findings(self) -> list[Finding]:
        """The findings of all sections."""
        return [finding for section in self.sections.values() for finding in section.findings]

    @property
    def exit_code(self) -> int:
        """0: no problem; 3: the models do not fit each other; 1: any other problem."""
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

    def as_text(self, width: int = _WIDTH) -> str:
        """One screen of so many columns, without private names."""
        parts = self.sections.items()
        lines = [_block(name, part.text, width) for name, part in parts if part.text]
        found = sorted(self.findings, key=lambda finding: not finding.wrong)
        lines += [_wrap(str(finding), "  ", width) for finding in found]
        wrong = sum(finding.wrong for finding in found)
        summary = counted(wrong, "problem") if wrong else "no problems"
        if better := len(found) - wrong:
            summary += f", {counted(better, 'suggestion')}"
        return str(discreet("\n".join([*lines, summary])))


def _wrap(text: str, indent: str, width: int) -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _block(name: str, text: str, width: int) -> str:
    text, indent = f"{name:<{_INDENT}}{text}", " " * _INDENT
    return text.replace("\n", f"\n{indent}") if "\n" in text else _wrap(text, indent, width)


def _finding(error: Exception) -> Finding:
    if isinstance(error, DSparkError):
        return Finding(error.problem, error.hint, code=error.exit_code)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    message = " ".join(str(error).split())[:300]
    return Finding(
        f"this check failed with {type(error).__name__}: {message} ({place})",
        "Please report this; --debug shows where it happened.",
    )


def discreet(value: Any) -> Any:
    """The same without the home directory and the user's name in paths."""
    if isinstance(value, dict):
        return {key: discreet(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [discreet(inner) for inner in value]
    return paths.discreet(value) if isinstance(value, str) else value
