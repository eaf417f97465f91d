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

GIB = 1024**3
#: A load average beyond this share of the cores disturbs what is measured.
_BUSY = 0.75
_SOURCES = {"NVIDIA": "-DGGML_CUDA=on", "Apple": "-DGGML_METAL=on", "AMD": "-DGGML_HIP=on"}


def versions() -> Section:
    """Ours and what we stand on; nothing is loaded for it."""
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
    """What llama.cpp was compiled with, and whether a GPU lies idle beside it."""
    from dspark_gguf.engine import build, library

    library.set_command_log(verbose)
    features, known = build.features(), build.versions()
    offload = library.can_offload()
    text = ", ".join(f"{name} {version}" for name, version in known.items())
    text += "; GPU offload" if offload else "; no GPU offload"
    for backend, names in features.items():
        text += f"; {backend}: {' '.join(names) or 'nothing special'}"
    facts = {"libraries": known, "offload": offload, "features": features}
    idle = () if offload else tuple(_idle(gpu, settings) for gpu in gpus())
    return Section(text, facts, idle, value=True)


def command_for(gpu: str) -> str:
    """How to build llama.cpp for the GPU of this name."""
    flag = next((flag for maker, flag in _SOURCES.items() if maker in gpu), "-DGGML_VULKAN=on")
    return f'CMAKE_ARGS="{flag}" pip install --force-reinstall --no-cache-dir llama-cpp-python'


def _idle(gpu: str, settings: Settings) -> Finding:
    return Finding(
        f"a build that uses the {gpu} of this machine",
        "one for the CPU alone",
        command_for(gpu),
        # Who asks for no layers on it knows.
        wrong=settings.target_options.n_gpu_layers not in (0, "none"),
    )


def gpus() -> list[str]:
    """Names of the GPUs that the system itself knows of."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple GPU (Metal)"]
    tool = shutil.which("nvidia-smi")
    if tool:
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
        f"{device.name} ({device.kind}): {device.description}, {device.free / GIB:.1f} of "
        f"{device.total / GIB:.1f} GiB free"
        for device in found
    ]
    facts = {"devices": [asdict(device) for device in found], "physical_cores": cores}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    parts.append(f"{cores} physical cores to use, load {load:.1f}")
    return Section("; ".join(parts), facts | {"load": load}, _busy(load, cores), value=found)


def _busy(load: float, cores: int) -> tuple[Finding, ...]:
    if load <= _BUSY * cores:
        return ()
    return (
        Finding(
            "an idle machine for the times below",
            f"a load of {load:.1f} on {cores} cores",
            "end what else computes and ask again; `profile --reset` forgets what was measured so",
            wrong=False,
        ),
    )
