"""Try in another process what a build of llama.cpp can do on this machine.

llama.cpp can keep weights in *extra buffers* for faster code: repacked, or for the AMX units of
Intel's server CPUs. On some machines the first pass with them crashes (gcc before 13.3 compiles AMX
wrongly, PR 114098; some hypervisors report units that they do not provide), and so may the first
pass on a GPU that a build does not support. Nothing warns of it. So each feature is tried in a
separate process, once per build and machine, on a small model (``first_pass.py``), and the outcome
is kept.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from llama_cpp.llama_cpp import _lib
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from dspark_gguf.engine import library
from dspark_gguf.errors import EngineError, UsageError
from dspark_gguf.paths import cache_path, replacing

Feature = Literal["extra buffers", "gpu"]
Wish = Literal["auto", "on", "off"]

#: Timeout; a trial takes one second, more on a busy machine.
_SECONDS = 60
#: Maximum relative difference of the logits: rounding causes 0.01, wrong kernels 1.
_ROUNDING = 0.2
#: A feature that is slower by this factor in every pass is not used.
_SLOWER = 1.1
_FORMAT = 1
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
_CHILD = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from dspark_gguf.engine.first_pass import main; main(*sys.argv[1:4])"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a trial."""

    fault: str = ""  # what is wrong with the feature, in words
    everywhere: bool = False  # whether a pass without the feature fails too
    known: bool = True  # whether the trial had a result; if not, the fault says why
    #: Rows of a pass -> seconds relative to a pass without the feature.
    ratios: dict[int, float] = Field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Known to work."""
        return self.known and not self.fault

    @property
    def pays(self) -> bool:
        """Works, and is not slower in every pass."""
        return self.works and min(self.ratios.values(), default=1.0) <= _SLOWER


_OUTCOME = TypeAdapter(Outcome)
_known: dict[Feature, Outcome] = {}


def outcome(feature: Feature, again: bool = False) -> Outcome:
    """The outcome of a feature's trial; runs it (1 s) if there is none, or if `again`."""
    if again or feature not in _known:
        kept = None if again else _read(_path(feature))
        _known[feature] = kept or _try_and_save(feature)
    return _known[feature]


def extra_buffers(wish: Wish = "auto") -> bool:
    """Whether to use extra buffers; an `EngineError` if this build cannot run at all."""
    if wish in ("on", "off"):
        return wish == "on"
    if wish != "auto":
        raise UsageError(f"extra_buffers cannot be {wish!r}", "Give auto, on or off.")
    found = outcome("extra buffers")
    if found.everywhere:
        raise EngineError(
            f"the first pass of this build of llama.cpp {found.fault}",
            f"Build it on this machine: {library.install_command()}",
        )
    return found.pays if found.known else not has_amx()


def gpu_runs() -> bool:
    """Whether passes on the GPU work, as far as is known."""
    found = outcome("gpu")
    return found.works or not found.known


def notes(wish: Wish = "auto", on_gpu: bool = False) -> list[str]:
    """A line for each feature that is not used because of its trial, and how to get it.

    `on_gpu` is whether the GPU would be used by default.
    """
    said = []
    if wish == "auto" and not extra_buffers():
        why = outcome("extra buffers").fault or "is slower on this machine"
        cure = f"; to have them: {install_with_amx()}" if why.startswith("ends") else ""
        said.append(f"{buffers()} are left out: a first pass with them {why}{cure}")
    if on_gpu and not gpu_runs():
        why = outcome("gpu").fault
        said.append(f"the GPU is left out: a first pass on it {why}; `doctor` says more")
    return said


def install_with_amx() -> str:
    """What builds llama.cpp with code for AMX that old versions of gcc too compile correctly."""
    return f"CXXFLAGS=-fno-dse {library.install_command()}"


def buffers() -> str:
    """What this build keeps in extra buffers, in words."""
    return "AMX and repacked weights" if has_amx() else "repacked weights"


def has_amx() -> bool:
    """Whether this build has code for Intel's AMX units."""
    return "AMX_INT8" in library.features().get("CPU", [])


def _try_and_save(feature: Feature) -> Outcome:
    """Run a new trial, and keep the outcome in a file if possible."""
    found, path = _try(feature), _path(feature)
    if found.known:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(_OUTCOME.dump_json(found))
    return found


def _try(feature: Feature) -> Outcome:
    if getattr(sys, "frozen", False) or not sys.executable:
        return _unknown("there is no Python to start")
    try:
        with TemporaryDirectory(prefix="dspark-gguf-", ignore_cleanup_errors=True) as folder:
            end = _run(feature, Path(folder))
            return _judge(_answer(Path(folder)), end)
    except OSError as error:
        return _unknown(error.strerror or str(error))


def _unknown(why: str) -> Outcome:
    return Outcome(f"could not be tried: {why}", known=False)


def _run(feature: Feature, folder: Path) -> str:
    """Run the child; returns how it failed (a signal or words), empty if it did not."""
    command = [sys.executable, "-c", _CHILD, feature, str(folder), str(_SECONDS), *sys.path]
    with (folder / "said").open("wb") as said:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
                timeout=_SECONDS, check=False,
                start_new_session=True,  # the terminal's signals do not reach it
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"takes more than {_SECONDS} s"
    with suppress(ValueError):
        return signal.Signals(-done.returncode).name
    return f"code {done.returncode & 0xFFFFFFFF:#x}" if done.returncode else ""


def _answer(folder: Path) -> dict[str, Any]:
    """The JSON objects that the child printed, merged."""
    said: dict[str, Any] = {}
    for line in (folder / "said").read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            said |= found if isinstance(found, dict) else {}
    return said


def _judge(said: Mapping[str, Any], end: str) -> Outcome:
    if "started" not in said or "error" in said or end in _FROM_OUTSIDE:
        return _unknown(said.get("error") or end or "no answer")
    if end:
        fault = end if end.startswith("takes") else f"ends the process ({end})"
        return Outcome(fault, everywhere="plain" not in said)
    try:
        if said["difference"] <= _ROUNDING:  # false for NaN
            return Outcome(ratios=said["ratios"])
    except (KeyError, TypeError, ValueError):
        return _unknown("no answer")
    return Outcome("computes something else")


def _path(feature: Feature) -> Path:
    """The file for this feature, build and machine."""
    stats: list[Any] = []
    with suppress(OSError):
        files = [one for one in Path(_lib._name).parent.iterdir() if one.is_file()]
        stats = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files)
    system = [processor(), platform.release(), platform.machine()]
    facts = [_FORMAT, feature, stats, library.machine(), *system]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    return cache_path("builds") / f"{digest[:24]}.json"


def processor() -> str:
    """The processor's features, as the system reports them."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _read(path: Path) -> Outcome | None:
    with suppress(OSError, ValueError):
        return _OUTCOME.validate_json(path.read_bytes())
    return None
