"""The results file of a batch: one writer at a time, resumable, complete at any moment.

Results are appended. Other changes (failed jobs that are tried again, the rest of a line that was
cut off, the final order) are written to a new file, which then replaces the old one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dspark_gguf.chat.jobs import Job, Record, parse
from dspark_gguf.chat.stdin import DASH
from dspark_gguf.chat.terminal import Screen, note_on_wait
from dspark_gguf.config import Settings
from dspark_gguf.errors import DSparkError, UsageError, reason_of
from dspark_gguf.paths import file_errors, replacing, require_writable
from dspark_gguf.visible import as_json

#: Settings that the text depends on, by the beginnings of their names; speed does not change it.
_TEXT = (
    "model", "sampling.", "limits.", "chat.", "target_options.cache_type_", "target_options.rope_",
    "target_options.yarn_",
)  # fmt: skip
#: What each line begins with.
_START = b'{"index": '
#: With a lossy acceptance rule, the text depends on these too.
_DRAFTED = ("draft", "speculation.")


@dataclass(frozen=True, slots=True)
class Results:
    """What a results file holds, and how to append to it.

    A file takes each result at once, and is sorted at the end; results for stdout or a pipe are
    written in order if `ordered`.
    """

    path: Path | None = None  # None: stdout
    ordered: bool = False
    kept: Mapping[int, bool] = field(default_factory=dict)  # index -> whether that job failed
    retried: int = 0  # failed jobs that were taken out, to be tried again
    seed: int | None = None  # of the results that stay, if there are any

    @contextmanager
    def writing(self, jobs: Sequence[Job] = ()) -> Iterator[Callable[[Record], object]]:
        """Yields a function that appends the result of one of the `jobs` in a single write."""
        if self.path is None:
            out = sys.stdout
        else:
            wait = note_on_wait(f"waiting for a reader of {self.path}")  # of a named pipe
            with wait, file_errors("write", self.path):
                out = self.path.open("a", encoding="utf-8", newline="\n")

        def write(result: Record) -> None:
            out.write(as_json(result, out) + "\n")
            out.flush()

        with self._naming_path(), out if self.path else nullcontext():
            if self.ordered:
                with _in_order(write, jobs) as write_in_order:
                    yield write_in_order
            else:
                yield write

    @contextmanager
    def _naming_path(self) -> Iterator[None]:
        """Inside, an OSError that names no other file becomes a DSparkError about this one."""
        try:
            yield
        except OSError as error:
            if self.path is None or error.filename or isinstance(error, BrokenPipeError):
                raise
            problem = f"cannot write {self.path}: {reason_of(error)}"
            raise DSparkError(problem, "Free some space and run it again to resume.") from None


@contextmanager
def results_in(
    path: Path | None,
    jobs: Sequence[Job],
    settings: Settings,
    keep_errors: bool,
    unordered: bool = False,
) -> Iterator[Results]:
    """The results in the file so far; inside, no other run can add to them.

    A pipe or a device (None, ``-``: stdout) holds none, and gets results in the order of the jobs
    unless `unordered`. A file is sorted at the end. A UsageError says that another run is writing
    there, or that the results belong to other prompts or settings.
    """
    if path is None or str(path) in (DASH, "/dev/stdout"):
        yield Results(ordered=not unordered)
    elif path.exists() and not path.is_file() and not path.is_dir():
        yield Results(path, ordered=not unordered)
    else:
        path = path.resolve()
        if not path.exists():
            require_writable(path)
        with locked(path, "Wait for it or name another file."):
            yield _resumed(path, jobs, settings, keep_errors)
            _tidied(path, jobs, keep_errors=True)


def _resumed(path: Path, jobs: Sequence[Job], settings: Settings, keep_errors: bool) -> Results:
    found, by_index = _read(path, jobs), {job.index: job for job in jobs}
    for index, result in found.items():
        if "settings" in result:  # else it failed
            _check_settings(result, by_index[index].settings(settings), path)
    kept = _tidied(path, jobs, keep_errors)
    seeds = [
        _flat(result.get("settings")).get("sampling.seed")
        for result in kept.values()
        if "seed" not in result["input"]
    ]
    known = [seed for seed in seeds if isinstance(seed, int) and 0 <= seed < 2**64]
    failed = {index: "error" in result for index, result in kept.items()}
    retried, seed = len(found) - len(kept), known[-1] if known else None
    return Results(path, kept=failed, retried=retried, seed=seed)


@contextmanager
def _in_order(
    write: Callable[[Record], object], jobs: Sequence[Job]
) -> Iterator[Callable[[Record], None]]:
    """Yields a function that holds a result back until all earlier jobs have theirs.

    After Ctrl-C, finished results that are still held back are written at the end.
    """
    order, held = deque(job.index for job in jobs), dict[int, Record]()

    def put(result: Record) -> None:
        held[result["index"]] = result
        while order and order[0] in held:
            write(held.pop(order.popleft()))

    try:
        yield put
    finally:
        for _, result in sorted(held.items()):
            write(result)


def _tidied(path: Path, jobs: Sequence[Job], keep_errors: bool) -> dict[int, Record]:
    """Leave one complete line for each finished job, in order; returns those results."""
    found = sorted(_read(path, jobs).items())
    kept = {index: result for index, result in found if keep_errors or "error" not in result}
    lines = "".join(as_json(result) + "\n" for result in kept.values()).encode()
    if path.exists() and path.read_bytes() != lines:
        with replacing(path) as temporary:
            temporary.write_bytes(lines)
            shutil.copymode(path, temporary)
    return kept


def _read(path: Path, jobs: Sequence[Job]) -> dict[int, Record]:
    """Results by index. If a job has two, the later one counts unless it is a failure."""
    if not path.exists():
        return {}
    with file_errors("read", path):
        *lines, last = path.read_bytes().split(b"\n")
    start = last.rstrip(b"\0")[: len(_START)]
    if parse(last) is not None or not _START.startswith(start):  # else what a power cut left
        lines.append(last)
    inputs = {job.index: job.input for job in jobs}
    found: dict[int, Record] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        result = parse(line) or {}
        index: Any = result.get("index")
        wanted = inputs.get(index) if isinstance(index, int) else None
        if wanted is None or result.get("input") != wanted:
            problem = f"{path} holds results of other prompts"
            if not line.startswith(_START):
                problem = f"{path} is not a results file of these prompts (line {number})"
            raise UsageError(problem, "Name another --output file.")
        if index not in found or "error" not in result:
            found[index] = result
    return found


def _check_settings(result: Record, settings: Settings, path: Path) -> None:
    """Refuse to mix texts made with other settings: a UsageError names the first difference."""
    ours, usual = (_flat(each.model_dump(mode="json")) for each in (settings, Settings()))
    theirs = usual | _flat(result["settings"])  # which has what differs
    lossy = ("typical", "threshold")
    drafted = any(each.get("speculation.acceptance") in lossy for each in (theirs, ours))
    names = (*_TEXT, *_DRAFTED) if drafted else _TEXT
    if settings.sampling.seed is None:  # then it takes theirs
        ours.pop("sampling.seed")
    for name in ours:
        if name.startswith(names) and theirs[name] != ours[name]:
            there, now = json.dumps(theirs[name]), json.dumps(ours[name])
            problem = f"{path} was made with other settings: {name} {there} there and {now} now"
            raise UsageError(problem, "Use the settings from there, or name another --output file.")


def _flat(settings: Any) -> dict[str, Any]:
    """Values by dotted name, such as ``sampling.seed``."""
    flat: dict[str, Any] = {}
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        inner = value if isinstance(value, dict) else None
        flat |= {f"{name}.{key}": each for key, each in inner.items()} if inner else {name: value}
    return flat


@contextmanager
def locked(path: Path, hint: str) -> Iterator[None]:
    """Hold the lock of a file that grows, which lies beside it while a run writes there.

    A UsageError with this hint: another run does.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        problem = f"another run is writing to {path}"
        raise UsageError(problem, hint) from None
    except (OSError, NotImplementedError) as error:  # a read-only folder, a disk without locks
        Screen().note(f"note: {path} is not locked against other runs: {reason_of(error)}")
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            place.unlink()
        lock.release()
