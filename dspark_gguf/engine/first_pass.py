"""First passes of a small model, run in the process that ``trial.py`` starts and watches.

Each result is written to stdout at once, as a line of JSON: the process may crash anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.sequence import SequenceCache, open_cache
from dspark_gguf.engine.timing import interleave, pass_seconds, tokens
from dspark_gguf.engine.trial_model import write_trial_model

#: How to load the model for each feature. One thread is disturbed least by other programs.
_PLAIN = ModelOptions(n_gpu_layers="none", extra_buffers="off", threads=1)
_FEATURES = {
    "extra buffers": _PLAIN.model_copy(update={"extra_buffers": "on"}),
    "gpu": _PLAIN.model_copy(update={"n_gpu_layers": "all"}),
}
#: Rows of the passes to compare: there are kernels for one, few and many rows. The first three are
#: timed.
_ROWS, _TIMED = (1, 4, 16, 64), 3
_DEPTH, _REPEATS = 16, 7


def main(feature: str, folder: str, seconds: str) -> None:
    """Compare passes with and without a feature; the parent waits `seconds`."""
    _die_quietly(int(seconds))
    try:
        for found in _trial(feature, Path(folder)):
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
    except Exception as error:
        sys.stdout.write(json.dumps({"error": str(error) or type(error).__name__}) + "\n")


def _trial(feature: str, folder: Path) -> Iterator[dict[str, Any]]:
    path = write_trial_model(folder / "trial.gguf")
    yield {"started": True}
    plain = _cache(path, _PLAIN)
    wanted = [_rows(plain, count) for count in _ROWS]
    yield {"plain": True}
    tried = _cache(path, _FEATURES[feature])
    found = [_rows(tried, count) for count in _ROWS]
    yield {"difference": max(map(_difference, found, wanted))}
    yield {"ratios": {rows: _ratio(tried, plain, rows) for rows in _ROWS[:_TIMED]}}


def _cache(path: Path, options: ModelOptions) -> SequenceCache:
    return open_cache(Model(path, options), 2 * max(_ROWS), max(_ROWS), Event())


def _rows(cache: SequenceCache, count: int) -> npt.NDArray[np.float32]:
    """The logits of one pass ``[count, n_vocab]``."""
    ids = tokens(cache, _DEPTH + count)
    prefill(cache, ids[:_DEPTH])
    rows = cache.decode(ids[_DEPTH:], count)
    return np.stack([rows[k] for k in range(count)])


def _difference(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """Relative L2 distance from `wanted`; NaN if a logit is NaN."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _ratio(tried: SequenceCache, plain: SequenceCache, count: int) -> float:
    """Seconds of the fastest pass over those of the fastest plain one."""
    ids = tokens(plain, _DEPTH + count)
    work = {cache: partial(pass_seconds, cache, ids, _DEPTH, count) for cache in (tried, plain)}
    ours, theirs = interleave(work, _REPEATS).values()
    return min(ours) / min(theirs)


def _die_quietly(seconds: int) -> None:
    """No core dump, dialog or backtrace on a crash; and a time limit, in case the parent dies."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x8003)
        return
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(2 * seconds)
