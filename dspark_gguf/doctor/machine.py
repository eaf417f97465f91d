"""The build and the machine: features, devices, and whether a first pass works here."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from dspark_gguf.config import Settings
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine import library, rpc, trial
from dspark_gguf.paths import GIB
from dspark_gguf.visible import counted

#: A load average above this share of the cores disturbs measurements.
_BUSY = 0.75
_FLAGS = {"NVIDIA": "-DGGML_CUDA=on", "Apple": "-DGGML_METAL=on", "AMD": "-DGGML_HIP=on"}


def features(settings: Settings, verbose: bool = False) -> Section:
    """The features llama.cpp was compiled with, and whether a GPU stays unused."""
    library.set_command_log(verbose)
    found, known = library.features(), library.versions()
    offload = library.can_offload()
    text = ", ".join(f"{name} {version}" for name, version in known.items())
    text += "; GPU offload" if offload else "; no GPU offload"
    for backend, names in found.items():
        text += f"; {backend}: {' '.join(names) or 'nothing special'}"
    facts = {"libraries": known, "offload": offload, "features": found}
    # No fault if the user asked for no layers on the GPU.
    wrong = settings.target_options.n_gpu_layers not in (0, "none")
    idle = () if offload else tuple(
        Finding(f"this build does not use the {gpu} of this machine", rebuild(gpu), wrong)
        for gpu in gpus()
    )  # fmt: skip
    return Section(text, facts, idle, value=True)


def rebuild(gpu: str) -> str:
    """How to build llama.cpp for the GPU of this name."""
    flag = next((flag for maker, flag in _FLAGS.items() if maker in gpu), "-DGGML_VULKAN=on")
    return f"Build it for the GPU: {library.install_command(flag)}"


def gpus() -> list[str]:
    """Names of the GPUs that the operating system reports."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple GPU (Metal)"]
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):  # a driver that does not answer
            told = subprocess.check_output(
                command, stderr=subprocess.DEVNULL, text=True, timeout=10
            )
            return told.strip().splitlines()[:1]
    return ["AMD GPU (ROCm)"] if Path("/dev/kfd").exists() else []


def devices(servers: Sequence[str] = ()) -> Section:
    """All devices, those of RPC servers included, with their memory; and the cores."""
    rpc.connect(servers)
    found, cores = library.devices(), library.physical_cores()
    parts = [
        f"{device.name} ({device.kind}): {device.description}, {device.free / GIB:.1f} of "
        f"{device.total / GIB:.1f} GiB free"
        for device in found
    ]
    load = psutil.getloadavg()[0]
    parts.append(f"{cores} physical cores to use, load {load:.1f}")
    busy = Finding(
        f"the machine is busy (load {load:.1f} on {cores} cores), times are too long here",
        "Close other programs and try again; `profile --reset` forgets what was measured now.",
        wrong=False,
    )
    facts = {"devices": [asdict(device) for device in found], "physical_cores": cores, "load": load}
    return Section("; ".join(parts), facts, (busy,) * (load > _BUSY * cores), value=found)


def first_pass(settings: Settings) -> Section:
    """Try what is known to crash some builds. The value: settings that load safely, or None."""
    extra = trial.outcome("extra buffers", again=True)
    facts: dict[str, Any] = {"extra_buffers": {**asdict(extra), "pays": extra.pays}}
    if extra.everywhere:
        problem = f"the first pass of this build on this machine {extra.fault}"
        wrong = Finding(problem, f"Build it here: {library.install_command()}")
        return Section(f"the plainest one {extra.fault}", facts, (wrong,))
    text, findings = _extra_buffers(extra), _suggestions(extra)
    if library.can_offload():
        gpu = trial.outcome("gpu", again=True)
        facts["gpu"] = asdict(gpu)
        text += f"; on the GPU: {gpu.fault or 'works'}"
        if not trial.gpu_runs():
            names = [device.description for device in library.devices() if "GPU" in device.kind]
            name = names[0] if names else "GPU"
            problem = f"the first pass of this build on the {name} {gpu.fault}"
            findings.append(Finding(problem, rebuild(name)))
            settings = _on_cpu(settings)
    return Section(text, facts, tuple(findings), value=settings)


def _extra_buffers(extra: trial.Outcome) -> str:
    text = f"works; with {trial.buffers()}: "
    if not extra.works:
        return text + extra.fault + ("" if trial.extra_buffers() else ", so they are left out")
    times = ", ".join(
        f"{counted(rows, 'row')} x{ratio:.2f}" for rows, ratio in extra.ratios.items()
    )
    slower = "" if extra.pays else ", so they are left out"
    return f"{text}works, seconds over those without: {times} (a small model, one thread){slower}"


def _suggestions(extra: trial.Outcome) -> list[Finding]:
    if extra.known and extra.fault:
        problem = f"with {trial.buffers()} a first pass {extra.fault}"
    elif library.can_offload():
        return []  # the rest of the processor hardly matters
    elif "amx_int8" in trial.processor().split() and not trial.has_amx():
        problem = "this processor has AMX, but this build does not use it"
    else:
        return []
    # Of one row 0.6 to 0.8, of sixteen 0.4 to 0.5: docs/measurements.md.
    hint = f"Passes can take half to three quarters of the time: {trial.install_with_amx()}"
    return [Finding(problem, hint, wrong=False)]


def _on_cpu(settings: Settings) -> Settings:
    """The same with everything on the CPU, so that the rest can be examined."""
    changes = {
        part: getattr(settings, part).model_copy(update={"n_gpu_layers": "none"})
        for part in ("target_options", "draft_options")
    }
    return settings.model_copy(update=changes)
