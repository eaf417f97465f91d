"""What a build of llama.cpp can do on this machine, tried where its end is not ours.

llama.cpp keeps weights in *extra buffers*, laid out for special code: repacked, or for the AMX
units of Intel's servers. On some machines the first pass with them ends the process (gcc before
13.3 compiles AMX wrongly, PR 114098; some hypervisors announce units that they withhold), and so
may the first pass on a GPU that a build does not really know. No return value tells of it. So each
way is tried in a process of its own, once for a build and a machine, on a small model
(``first_pass.py``), and what came of it is kept.
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
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from llama_cpp.llama_cpp import _lib

from dspark_gguf.engine import build, library
from dspark_gguf.errors import EngineError
from dspark_gguf.paths import cache_path, replacing

Way = Literal["extra buffers", "gpu"]
Wish = Literal["auto", "on", "off"]

#: How to build llama.cpp here.
REINSTALL = "pip install --force-reinstall --no-cache-dir llama-cpp-python"
#: The same so that old versions of gcc get AMX right as well; others take the flag, too.
REBUILD = f"CXXFLAGS=-fno-dse {REINSTALL}"
#: It takes a second; a machine that does much else gets its time.
_SECONDS = 60
#: Length of the difference of logits over theirs: rounding makes 0.01, wrong kernels 1.
_ROUNDING = 0.2
#: What is slower than this in every pass is left out.
_SLOWER = 1.1
_FORMAT = 1
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
_CHILD = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from dspark_gguf.engine.first_pass import main; main(*sys.argv[1:4])"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        fault: what is wrong with this way, in words; empty: nothing.
        everywhere: whether the plainest pass has the fault too.
        known: whether it was found out; else the fault says why not.
        ratios: rows of a pass -> its seconds over those of the plain way.

    """

    fault: str = ""
    everywhere: bool = False
    known: bool = True
    ratios: Mapping[int, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Known to do what it should."""
        return self.known and not self.fault

    @property
    def pays(self) -> bool:
        """Works, and is not slower in every pass."""
        return self.works and min(self.ratios.values(), default=1.0) <= _SLOWER


_known: dict[Way, Outcome] = {}


def outcome(way: Way) -> Outcome:
    """What came of the trial of `way`, which is made now if it never was."""
    if way not in _known:
        _known[way] = _kept(_path(way)) or _found(way)
    return _known[way]


def renewed(way: Way) -> Outcome:
    """The same, tried anew: about a second."""
    _known[way] = _found(way)
    return _known[way]


def extra_buffers(wish: Wish = "auto") -> bool:
    """Whether to load a model with extra buffers.

    Raises:
        EngineError: this build cannot run here at all.

    """
    if wish != "auto":
        return wish == "on"
    found = outcome("extra buffers")
    if found.everywhere:
        raise EngineError(
            "a build of llama.cpp that runs on this machine",
            f"one whose first pass {found.fault}",
            f"build it here: {REINSTALL}",
        )
    return found.pays if found.known else not has_amx()


def gpu_runs() -> bool:
    """Whether a pass on the GPU does not fail its trial."""
    found = outcome("gpu")
    return found.works or not found.known


def notes(wish: Wish = "auto", on_gpu: bool = False) -> list[str]:
    """What is left out because of its trial, and how to have it: a sentence each.

    Args:
        wish: as for `extra_buffers`.
        on_gpu: whether the GPU would be used without being asked for.

    """
    said = []
    if wish == "auto" and not extra_buffers():
        why = outcome("extra buffers").fault or "is slower on this machine"
        said.append(f"{buffers()} are left out: a first pass with them {why}{_cure(why)}")
    if on_gpu and not gpu_runs():
        why = outcome("gpu").fault
        said.append(f"the GPU is left out: a first pass on it {why}; `doctor` says more")
    return said


def buffers() -> str:
    """What the extra buffers of this build hold, in words."""
    return "AMX and repacked weights" if has_amx() else "repacked weights"


def has_amx() -> bool:
    """Whether this build has code for Intel's AMX units."""
    return "AMX_INT8" in build.features().get("CPU", [])


def _cure(why: str) -> str:
    return f"; to have them: {REBUILD}" if why.startswith("ends") else ""


def _found(way: Way) -> Outcome:
    found = _tried(way)
    if found.known:
        _keep(found, _path(way))
    return found


def _tried(way: Way) -> Outcome:
    if getattr(sys, "frozen", False) or not sys.executable:
        return Outcome("could not be tried: this program is no Python", known=False)
    try:
        with TemporaryDirectory(prefix="dspark-gguf-", ignore_cleanup_errors=True) as folder:
            end = _end(way, Path(folder))
            return _judged(_lines(Path(folder) / "said"), end)
    except OSError as error:
        return Outcome(f"could not be tried: {error.strerror or error}", known=False)


def _end(way: Way, folder: Path) -> str:
    """Run the child; how it ended: nothing to say, or a signal, or words."""
    command = [sys.executable, "-c", _CHILD, way, str(folder), str(_SECONDS), *sys.path]
    with (folder / "said").open("wb") as said:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                start_new_session=True,  # a closed terminal is not its business
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"takes more than {_SECONDS} s"
    if done.returncode < 0:
        with suppress(ValueError):
            return signal.Signals(-done.returncode).name
    return f"code {done.returncode & 0xFFFFFFFF:#x}" if done.returncode else ""


def _lines(path: Path) -> dict[str, Any]:
    """All that the child said, whatever it printed besides."""
    said: dict[str, Any] = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            said |= found if isinstance(found, dict) else {}
    return said


def _judged(said: Mapping[str, Any], end: str) -> Outcome:
    if "started" not in said or "error" in said or end in _FROM_OUTSIDE:
        why = said.get("error") or end or "no answer"
        return Outcome(f"could not be tried: {why}", known=False)
    if end:
        fault = end if end.startswith("takes") else f"ends the process ({end})"
        return Outcome(fault, everywhere="plain" not in said)
    try:
        ratios = {int(rows): float(ratio) for rows, ratio in said["ratios"].items()}
        rounds = float(said["difference"]) <= _ROUNDING  # not so if it is no number
    except (KeyError, AttributeError, TypeError, ValueError):
        return Outcome("could not be tried: no answer", known=False)
    return Outcome(ratios=ratios) if rounds else Outcome("computes something else")


def _path(way: Way) -> Path:
    """The file for this way, build and machine: another one whenever anything of it differs."""
    stats: list[Any] = []
    with suppress(OSError):
        files = [one for one in Path(_lib._name).parent.iterdir() if one.is_file()]
        stats = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files)
    facts = [
        _FORMAT, way, stats, library.machine(), processor(), platform.release(),
        platform.machine(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    return cache_path("builds") / f"{digest[:24]}.json"


@lru_cache
def processor() -> str:
    """What the system says that the processor can do."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _kept(path: Path) -> Outcome | None:
    try:
        values = json.loads(path.read_text("utf-8"))
        ratios = {int(rows): float(ratio) for rows, ratio in values["ratios"].items()}
        return Outcome(str(values["fault"]), bool(values["everywhere"]), ratios=ratios)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _keep(found: Outcome, path: Path) -> None:
    """A folder that cannot be written to is no reason to fail: it is then tried every time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(found)), encoding="utf-8")
