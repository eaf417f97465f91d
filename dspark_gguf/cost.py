"""What a round costs on this machine: seconds of a target pass by rows, of drafting by steps.

The curve is jagged (4 rows can be cheaper than 3), depends on quantization, cores and backend, and
grows with the context, so it must be measured on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError, field_validator

from dspark_gguf.arrays import Floats
from dspark_gguf.costs_record import MAX_SECONDS
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import file_errors, read_whole
from dspark_gguf.records import Round


class Costs(Protocol):
    """Seconds of the parts of a round."""

    @property
    def target_seconds(self) -> Floats:
        """Of a round with a target pass of 1, 2, ... rows, without drafting."""

    @property
    def draft_seconds(self) -> Floats:
        """Of 1, 2, ... draft steps, cumulative."""

    @property
    def redo_seconds(self) -> Floats:
        """Of rereading 0, 1, ... accepted tokens; 0 if the cache can drop single tokens."""

    def catch_up_seconds(self, tokens: int) -> float:
        """Of reading `tokens` that the drafter has not seen, before its first draft step."""

    def is_doubtful(self, rows: int) -> bool:
        """Whether a pass of so many rows has hardly been seen yet."""

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""


class FixedCosts:
    """A fixed table, for replays.

    Seconds of a target pass of 1, 2, ... rows and of 1, 2, ... draft steps, cumulative; a
    ValueError if they are invalid. With `rereads`, a rejection costs a pass over the accepted
    tokens.
    """

    def __init__(
        self, target_seconds: npt.ArrayLike, draft_seconds: npt.ArrayLike, *, rereads: bool = False
    ) -> None:
        self.target_seconds = np.asarray(target_seconds, dtype=np.float64)
        self.draft_seconds = np.asarray(draft_seconds, dtype=np.float64)
        target, draft = self.target_seconds.tolist(), self.draft_seconds.tolist()
        _Table(target_seconds=target, draft_seconds=draft)
        self.rereads = rereads
        self.redo_seconds = self.target_seconds * rereads

    @property
    def limit(self) -> int:
        """Maximum draft tokens that both lists cover."""
        return min(len(self.target_seconds) - 1, len(self.draft_seconds))

    def catch_up_seconds(self, tokens: int) -> float:
        """0: tables do not include it."""
        return 0.0

    def is_doubtful(self, rows: int) -> bool:
        """Never: a table is exact."""
        return False

    def observe(self, round: Round) -> None:
        """Nothing to learn."""


def seconds_at(seconds: Floats, rows: int | npt.NDArray[np.int64]) -> Floats:
    """Seconds of passes of so many rows; the table is extrapolated with its average slope."""
    slope = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
    inside = np.minimum(rows, len(seconds))
    found: Floats = seconds[inside - 1] + slope * (rows - inside)
    return found


_Seconds = Annotated[float, Field(gt=0, lt=MAX_SECONDS)]
_SecondsOrNone = Annotated[float, Field(ge=0, lt=MAX_SECONDS)]


class _Table(BaseModel, allow_inf_nan=False):
    target_seconds: Annotated[list[_Seconds], Field(min_length=1)]
    draft_seconds: Annotated[list[_SecondsOrNone], Field(min_length=1)]

    @field_validator("draft_seconds")
    @classmethod
    def _is_cumulative(cls, seconds: list[float]) -> list[float]:
        if seconds != sorted(seconds):
            raise ValueError("these are cumulative and cannot decrease")
        return seconds


def load_table(path: Path) -> FixedCosts:
    """Read a cost table ``{"target_seconds": [...], "draft_seconds": [...]}``, or a UsageError."""
    try:
        with file_errors("read", path):
            table = _Table.model_validate_json(read_whole(path))
    except ValidationError as error:
        first = error.errors()[0]
        fault = ": ".join(map(str, [path, "not a cost table", *first["loc"], first["msg"]]))
        hint = "It needs target_seconds and draft_seconds: see `dspark-gguf profile --json`."
        raise UsageError(fault, hint) from None
    return FixedCosts(table.target_seconds, table.draft_seconds)
