"""How a first pass of this build ends on this machine, tried in another process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dspark_gguf.config import Settings
from dspark_gguf.doctor.machine import rebuild
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.engine import build, library, trial


def first_pass(settings: Settings) -> Section:
    """Try what builds are known to crash on. The value: settings that load safely, or None."""
    extra = trial.renewed("extra buffers")
    facts: dict[str, Any] = {"extra_buffers": {**asdict(extra), "pays": extra.pays}}
    if extra.everywhere:
        problem = f"the first pass of this build on this machine {extra.fault}"
        wrong = Finding(problem, f"Build it here: {trial.REINSTALL}")
        return Section(f"the plainest one {extra.fault}", facts, (wrong,))
    text, findings = _extra_buffers(extra), _suggestions(extra)
    if library.can_offload():
        gpu = trial.renewed("gpu")
        facts["gpu"] = asdict(gpu)
        text += f"; on the GPU: {gpu.fault or 'works'}"
        if not trial.gpu_runs():
            names = [device.description for device in build.devices() if "GPU" in device.kind]
            name = names[0] if names else "GPU"
            problem = f"the first pass of this build on the {name} {gpu.fault}"
            findings.append(Finding(problem, rebuild(name)))
            settings = _on_cpu(settings)
    return Section(text, facts, tuple(findings), value=settings)


def _extra_buffers(extra: trial.Outcome) -> str:
    text = f"works; with {trial.buffers()}: "
    if not extra.works:
        return text + extra.fault + ("" if trial.extra_buffers() else ", so they are left out")
    times = ", ".join(f"{rows} rows x{ratio:.2f}" for rows, ratio in extra.ratios.items())
    slower = "" if extra.pays else ", so they are left out"
    return f"{text}works, seconds over those without: {times} (a small model, one thread){slower}"


def _suggestions(extra: trial.Outcome) -> list[Finding]:
    if extra.known and extra.fault:
        problem = f"with {trial.buffers()} a first pass {extra.fault}"
    elif "amx_int8" in trial.processor().split() and not trial.has_amx():
        problem = "this processor has AMX, but this build does not use it"
    else:
        return []
    # Of one row 0.6 to 0.8, of sixteen 0.4 to 0.5: docs/measurements.md.
    hint = f"Passes can take half to three quarters of the time: {trial.REBUILD}"
    return [Finding(problem, hint, wrong=False)]


def _on_cpu(settings: Settings) -> Settings:
    """The same with everything on the CPU, so that the rest can be examined."""
    changes = {
        part: getattr(settings, part).model_copy(update={"n_gpu_layers": "none"})
        for part in ("target_options", "draft_options")
    }
    return settings.model_copy(update=changes)
