"""The machine and the build: versions, features, devices, memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from dspark_gguf import __version__
from dspark_gguf.config import Settings
from dspark_gguf.doctor.report import Finding, Section

_GIB = 1024**3
#: A load average beyond this share of the cores disturbs what is measured.
_BUSY = 0.75
_FLAGS = {"NVIDIA": "-DGGML_CUDA=on", "Apple": "-DGGML_METAL=on", "AMD": "-DGGML_HIP=on"}


def versions() -> Section:
    """Of the package, of Python and of the system; loads nothing."""
    try:
        binding = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        binding = "not installed"
    facts = {
        "dspark-gguf": __version__,
        "llama-cpp-python": binding,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return Section(", ".join(f"{k} {v}" if k != "system" else v for k, v in facts.items()), facts)


def build(settings: Settings, verbose: bool = False) -> Section:
    """What llama.cpp was compiled with, and whether it leaves a GPU idle."""
    from dspark_gguf.engine import build, library

    library.set_command_log(verbose)
    features, known = build.features(), build.versions()
    offload = library.can_offload()
    text = ", ".join(f"{name} {version}" for name, version in known.items())
    text += "; GPU offload" if offload else "; no GPU offload"
    for backend, names in features.items():
        text += f"; {backend}: {' '.join(names) or 'nothing special'}"
    facts = {"libraries": known, "offload": offload, "features": features}
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
    command = "pip install --force-reinstall --no-cache-dir llama-cpp-python"
    return f'Build it for the GPU: CMAKE_ARGS="{flag}" {command}'


def gpus() -> list[str]:
    """Names of the GPUs that the system itself knows of."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple GPU (Metal)"]
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if asked.returncode == 0:
            return [line.strip() for line in asked.stdout.splitlines() if line.strip()][:1]
    return ["AMD GPU (ROCm)"] if Path("/dev/kfd").exists() else []


def devices() -> Section:
    """Each with its memory, and the cores."""
    from dspark_gguf.engine import build, library

    found, cores = build.devices(), library.physical_cores()
    parts = [
        f"{device.name} ({device.kind}): {device.description}, {device.free / _GIB:.1f} of "
        f"{device.total / _GIB:.1f} GiB free"
        for device in found
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    parts.append(f"{cores} physical cores to use, load {load:.1f}")
    busy = Finding(
        f"the machine is busy (load {load:.1f} on {cores} cores), the times below are too long",
        "Close other programs and try again; `profile --reset` forgets what was measured now.",
        wrong=False,
    )
    facts = {
        "devices": [asdict(device) for device in found],
        "physical_cores": cores,
        "load": load,
    }
    return Section("; ".join(parts), facts, (busy,) * (load > _BUSY * cores), value=found)
