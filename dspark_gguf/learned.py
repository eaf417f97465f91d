"""What was learned of a pair on this machine: costs and calibrations, kept between runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import LearnedCosts
from dspark_gguf.paths import cache_path, replacing

_FORMAT = 1
#: What reading any JSON as ours may raise.
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


class Learned:
    """Costs, and a calibration for each way of drafting and accepting.

    Args:
        path: where it is kept; None: nowhere.

    Attributes:
        costs: what passes and looks take.
        note: why an existing file was not used, or empty.

    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.costs = LearnedCosts()
        self.note = ""
        self._calibrations: dict[str, Calibration] = {}
        if path is not None:
            self._load(path)

    def calibration(
        self, drafter: str, acceptance: str, temperature: float, is_free: bool = False
    ) -> Calibration:
        """What the scores of this drafter mean under this rule at such temperatures.

        Args:
            drafter: its name.
            acceptance: the rule's name.
            temperature: of the target's draws.
            is_free: whether its guesses cost nothing, so that all of them are learned from.

        """
        key = f"{drafter}/{acceptance}/{temperature_class(temperature)}"
        if key not in self._calibrations:
            self._calibrations[key] = Calibration.of_copies() if is_free else Calibration()
        return self._calibrations[key]

    def save(self) -> None:
        """Write all of it; another process that writes at the same time wins or loses as a whole.

        Raises:
            OSError: the folder cannot be written.

        """
        if self.path is None:
            return
        values = {
            "format": _FORMAT,
            "costs": self.costs.as_dict(),
            "calibrations": {key: one.as_dict() for key, one in self._calibrations.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(values), encoding="utf-8")

    def _load(self, path: Path) -> None:
        try:
            values = json.loads(path.read_text("utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError("another format")
            costs = LearnedCosts()
            costs.restore(values["costs"])
            calibrations = {key: _fresh(key) for key in dict(values["calibrations"])}
            for key, one in calibrations.items():
                one.restore(values["calibrations"][key])
        except FileNotFoundError:
            return
        except (OSError, *_DAMAGE):
            self.note = f"what was learned of this pair is unreadable and is learned anew: {path}"
            return
        self.costs, self._calibrations = costs, calibrations


def _fresh(key: str) -> Calibration:
    return Calibration.of_copies() if key.startswith("lookup/") else Calibration()


def temperature_class(temperature: float) -> str:
    """Temperatures that share a calibration."""
    if temperature == 0.0:
        return "greedy"
    return "cool" if temperature <= 0.5 else "warm" if temperature <= 1.1 else "hot"


def learned_path(facts: dict[str, Any]) -> Path:
    """The file for everything in `facts`: another one whenever anything in them differs."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return learned_dir() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def learned_dir() -> Path:
    """The folder of all that was learned; a home that cannot be written to is no reason to fail."""
    return cache_path("learned")


def forget_all() -> int:
    """Delete everything that was learned of any pair; returns the number of files."""
    files = list(learned_dir().glob("*.json"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)
