"""What a first pass comes to in this build on this machine: tried where its end is not ours."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dspark_gguf.config import Settings
from dspark_gguf.doctor.machine import command_for
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine import build, library, trial


def first_pass(settings: Settings) -> Section:
    """Try anew what builds are known to die of. The value: settings that are safe to load with.

    None where nothing is.
    """
    extra = trial.renewed("extra buffers")
    facts: dict[str, Any] = {"extra_buffers": {**asdict(extra), "pays": extra.pays}}
    if extra.everywhere:
        wrong = Finding("a build that runs on this machine", f"one whose first pass {extra.fault}",
                        f"build it here: {trial.REINSTALL}")  # fmt: skip
        return Section(f"the plainest one {extra.fault}", facts, (wrong,))
    text, findings = _with(extra), _advice(extra)
    if library.can_offload():
        gpu = trial.renewed("gpu")
        facts["gpu"] = asdict(gpu)
        text += f"; on the GPU: {gpu.fault or 'works'}"
        if not trial.gpu_runs():
            findings.append(_on_gpu(gpu.fault))
            settings = _on_cpu(settings)
    return Section(text, facts, tuple(findings), value=settings)


def _with(extra: trial.Outcome) -> str:
    text = f"works; with {trial.buffers()}: "
    if not extra.works:
        return text + extra.fault + ("" if trial.extra_buffers() else ", so they are left out")
    times = ", ".join(f"{rows} rows x{ratio:.2f}" for rows, ratio in extra.ratios.items())
    slower = "" if extra.pays else ", so they are left out"
    return f"{text}works, seconds over those without: {times} (a small model, one thread){slower}"


def _advice(extra: trial.Outcome) -> list[Finding]:
    if extra.known and extra.fault:
        needed, got = f"{trial.buffers()} that work", f"a first pass that {extra.fault}"
    elif "amx_int8" in trial.processor().split() and not trial.has_amx():
        needed, got = "a build with AMX, which this processor has", "one without"
    else:
        return []
    # Of one row 0.6 to 0.8, of sixteen 0.4 to 0.5: docs/measurements.md.
    do = f"for passes in half to three quarters of the time: {trial.REBUILD}"
    return [Finding(needed, got, do, wrong=False)]


def _on_gpu(fault: str) -> Finding:
    names = [device.description for device in build.devices() if "GPU" in device.kind]
    gpu = names[0] if names else "GPU"
    return Finding(f"a build for the {gpu}", f"one whose first pass there {fault}",
                   command_for(gpu))  # fmt: skip


def _on_cpu(settings: Settings) -> Settings:
    """The same with everything on the CPU, so that the rest can be looked at."""
    parts = ("target_options", "draft_options")
    changes = {
        part: getattr(settings, part).model_copy(update={"n_gpu_layers": "none"}) for part in parts
    }
    return settings.model_copy(update=changes)
