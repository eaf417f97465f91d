"""The file format of `LearnedCosts`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.figures import BELIEVED, Figure

#: Longer passes mean a damaged file; further observations are not counted.
MAX_SECONDS, MAX_SEEN = 1e6, 1_000_000

_Seconds = Annotated[float, Field(gt=0, lt=MAX_SECONDS)]
_Times = Annotated[int, Field(ge=0, le=MAX_SEEN)]
_Unseen = tuple[Annotated[float, Field(ge=0, le=0)], Literal[0]]
_Rows = Annotated[int, Field(ge=1, le=MAX_DRAFT + 1)]


class CostsRecord(BaseModel, allow_inf_nan=False):
    """The contents of `LearnedCosts`: each figure's seconds, and how often it was seen."""

    level: _Seconds
    profiled: Annotated[int, Field(ge=0)] = 12
    figures: dict[Literal["first", "step", "read"] | _Rows, tuple[_Seconds, _Times] | _Unseen]
    attention: dict[Literal["target", "draft", "row"], _Seconds] = {}
    starts: Annotated[int, Field(ge=0)] = 0
    switch: Annotated[float, Field(ge=0, lt=MAX_SECONDS)] = 0.0

    def seen(self) -> dict[Any, Figure]:
        """The figures by name, with little confidence so that each run checks them."""
        most = {name: BELIEVED - isinstance(name, str) for name in self.figures}
        pairs = {name: pair for name, pair in self.figures.items() if pair[1]}
        return {name: Figure(value, min(n, most[name])) for name, (value, n) in pairs.items()}
