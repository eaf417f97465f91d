"""Costs and calibrations of a pair on this machine, kept between runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, Field

from dspark_gguf.calibration import Calibration, CalibrationRecord
from dspark_gguf.costs_record import CostsRecord
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.paths import cache_path, remove_parts, replacing

_Seconds = Annotated[float, Field(gt=0, lt=1e6)]
#: Seconds that an answer took, and those of plain decoding at the same time.
Comparison: TypeAlias = tuple[_Seconds, _Seconds]
#: The newest comparisons are kept, so many.
_COMPARED = 64
#: Bytes to read for measuring the speed of memory: more than a CPU cache holds.
_READ = 2**27
#: Answer tokens between two saves, which take a few milliseconds.
_SAVE_EVERY = 256


#: Bytes of the largest target; no file has more, unless it is damaged.
_MAX_BYTES = 2**60


class _Kept(BaseModel):
    about: dict[str, Any] = {}


class _Record(_Kept):
    format: Literal[1] = 1
    costs: CostsRecord
    calibrations: dict[str, CalibrationRecord]
    comparisons: list[Comparison] = []
    target_bytes: Annotated[int, Field(ge=0, le=_MAX_BYTES)] = 0


class Learned:
    """Costs, and a calibration for each drafter and acceptance rule, kept in the file `path`.

    `about` has the model files and the machine, for `learned_of`.
    """

    def __init__(self, path: Path | None = None, about: dict[str, Any] | None = None) -> None:
        self.path, self.about = path, about or {}
        self.costs = LearnedCosts()
        #: The calibration from the draft's training, used at first.
        self.of_file: CalibrationRecord | None = None
        self.note = ""  # why an existing file was not used
        self._calibrations: dict[str, Calibration] = {}
        #: The newest answers with the default settings, compared with plain decoding.
        self.comparisons: list[Comparison] = []
        self.target_bytes = 0  # size of its weights; 0: unknown
        self.is_checked = False  # whether its costs were checked in this process
        self._unsaved = 0  # answer tokens since the last save
        if path is not None:
            self._load(path)

    def calibration(
        self, drafter: str, acceptance: str, temperature: float, is_free: bool = False
    ) -> Calibration:
        """The calibration of a drafter's scores under an acceptance rule.

        Free guesses are all learned from, and faster. With the target's noise, a score means the
        same at every temperature; otherwise each class of temperatures has its own calibration.
        """
        key = f"{drafter}/{acceptance}"
        if is_free or acceptance != "match":
            key += f"/{temperature_class(temperature)}"
        if key not in self._calibrations:
            self._calibrations[key] = made = Calibration.of_copies() if is_free else Calibration()
            if self.of_file and not is_free and acceptance == "match":
                made.restore(self.of_file)
        return self._calibrations[key]

    @property
    def best_known(self) -> Calibration:
        """The draft's calibration that has learned from the most tokens."""
        ours = [one for key, one in self._calibrations.items() if not key.startswith("lookup/")]
        return max(ours, key=lambda one: one.tested, default=Calibration())

    def compare(self, comparisons: Iterable[Comparison]) -> None:
        """Keep comparisons of answers with plain decoding."""
        self.comparisons = [*self.comparisons, *comparisons][-_COMPARED:]

    def after_answer(self, tokens: int) -> None:
        """Save now and then: a long conversation may end in a crash."""
        self._unsaved += tokens
        if self._unsaved >= _SAVE_EVERY:
            self._unsaved = 0
            self.save()

    def save(self) -> None:
        """Write everything atomically; of two processes, the last one wins.

        A folder that is not writable is ignored.
        """
        if self.path is None:
            return
        calibrations = {key: one.as_dict() for key, one in self._calibrations.items()}
        values = {
            "format": 1,
            "about": self.about,
            "costs": self.costs.as_dict(),
            "calibrations": calibrations,
            "comparisons": self.comparisons,
            "target_bytes": self.target_bytes,
        }
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_parts(self.path.parent, older=3600.0)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(values), encoding="utf-8")

    def _load(self, path: Path) -> None:
        try:
            record = _Record.model_validate(_read(path))
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            self.note = f"cannot read what was learned about this pair, starting over: {path}"
            return
        self.costs.restore(record.costs)
        self.comparisons = record.comparisons[-_COMPARED:]
        self.target_bytes = record.target_bytes
        for key, one in record.calibrations.items():
            is_lookup = key.startswith("lookup/")
            made = Calibration.of_copies() if is_lookup else Calibration()
            made.restore(one)
            self._calibrations[key] = made


def _read(path: Path) -> Any:
    """Plain values. Pydantic's JSON reader does not accept file names that are not valid text."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def temperature_class(temperature: float) -> str:
    """Temperatures that share a calibration."""
    if temperature == 0.0:
        return "greedy"
    return "cool" if temperature <= 0.5 else "warm" if temperature <= 1.1 else "hot"


def learned_path(facts: dict[str, Any]) -> Path:
    """The file for these `facts`; any difference in them leads to another file."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return learned_dir() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def learned_of(target: list[Any] | None, machine: dict[str, Any]) -> list[Learned]:
    """Everything learned on a machine about a target, by its file stamp, or any; newest last."""
    found = []
    for path in learned_dir().glob("*.json"):
        with suppress(OSError, ValueError):  # damaged, or deleted by another process
            about = _Kept.model_validate(_read(path)).about
            if target in (None, about.get("target")) and about.get("machine") == machine:
                found.append((path.stat().st_mtime_ns, path, about))
    return [Learned(path, about) for _, path, about in sorted(found, key=lambda one: one[0])]


def learned_dir() -> Path:
    """The folder of everything learned, which may be missing."""
    return cache_path("learned")


def seconds_per_byte(machine: dict[str, Any]) -> float:
    """Approximate seconds to read a byte of weights: as in passes of the largest model so far.

    Without any on this `machine`, as measured by reading main memory.
    """
    known = learned_of(None, machine)
    sizes = {one.target_bytes: one for one in known if one.target_bytes and one.costs.measured_rows}
    if sizes:
        size, largest = max(sizes.items())
        return float(largest.costs.target_seconds[0]) / size
    numbers = np.ones(_READ // 4, dtype=np.float32)
    taken = []
    for _ in range(3):
        started = perf_counter()
        numbers.sum()
        taken.append(perf_counter() - started)
    return min(taken) / numbers.nbytes


def forget_all() -> int:
    """Delete everything learned about any pair; returns the number of files."""
    files = list(learned_dir().glob("*.json"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)
