"""What the doctor says of first passes: of builds that die, it says so instead of dying."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.config import ModelOptions, Settings
from dspark_gguf.doctor import machine
from dspark_gguf.engine import library, trial
from tests.tiny.test_trial import DEAD, DIES, NEVER, SLOWER, WORKS


@pytest.fixture(autouse=True)
def this_machine(monkeypatch):
    """An idle one without AMX."""
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(trial, "processor", lambda: "flags : avx2")
    monkeypatch.setattr(trial, "has_amx", lambda: False)


def know(monkeypatch, extra, gpu=WORKS):
    """The trials end like this."""
    known = {"extra buffers": extra, "gpu": gpu}
    monkeypatch.setattr(trial, "_known", known)
    monkeypatch.setattr(trial, "outcome", lambda feature, again=False: known[feature])


def test_extra_buffers_that_work(monkeypatch):
    """How much faster, by rows; nothing to change."""
    know(monkeypatch, WORKS)
    section = machine.first_pass(Settings())
    assert "1 row x0.60, 4 rows x0.70, 16 rows x0.60" in section.text
    assert section.findings == ()
    assert section.value == Settings()
    assert section.facts["extra_buffers"]["pays"]


def test_extra_buffers_that_do_not(monkeypatch):
    """Left out, which is no fault; how to rebuild, where that helps."""
    monkeypatch.setattr(trial, "has_amx", lambda: True)
    know(monkeypatch, DIES)
    section = machine.first_pass(Settings())
    assert "AMX and repacked weights: ends the process (SIGSEGV), so they are left" in section.text
    (finding,) = section.findings
    assert not finding.wrong
    assert trial.install_with_amx() in finding.hint
    know(monkeypatch, SLOWER)
    section = machine.first_pass(Settings())
    assert "1 row x1.30" in section.text
    assert "left out" in section.text
    assert section.findings == ()
    know(monkeypatch, NEVER)
    assert "no room, so they are left out" in machine.first_pass(Settings()).text
    monkeypatch.setattr(trial, "has_amx", lambda: False)
    assert "left out" not in machine.first_pass(Settings()).text


def test_a_processor_with_amx_and_a_build_without(monkeypatch):
    """What it could have; not in a build that has it and works."""
    know(monkeypatch, WORKS)
    monkeypatch.setattr(trial, "processor", lambda: "flags : avx2 amx_tile amx_int8")
    (finding,) = machine.first_pass(Settings()).findings
    assert not finding.wrong
    assert trial.install_with_amx() in finding.hint
    monkeypatch.setattr(trial, "has_amx", lambda: True)
    assert machine.first_pass(Settings()).findings == ()


def test_a_build_for_a_gpu_stays_one(monkeypatch):
    """No other build for the sake of the processor; and each command builds for the GPU too."""
    know(monkeypatch, WORKS, WORKS)
    monkeypatch.setattr(trial, "processor", lambda: "flags : avx2 amx_tile amx_int8")
    monkeypatch.setattr(library, "can_offload", lambda *_: True)
    assert machine.first_pass(Settings()).findings == ()
    assert "CMAKE_ARGS" not in trial.install_with_amx()
    monkeypatch.setattr(library, "gpu_names", lambda *_: ["CUDA0", "CUDA1", "Metal"])
    assert trial.install_with_amx().startswith('CXXFLAGS=-fno-dse CMAKE_ARGS="-DGGML_CUDA=on" pip')
    assert '"-DGGML_CUDA=on -DGGML_RPC=ON"' in library.install_command("-DGGML_RPC=ON")
    assert machine.rebuild("NVIDIA H100").count("CUDA") == 1


@pytest.mark.parametrize("asked", [None, "all"])
def test_a_gpu_that_dies(monkeypatch, asked):
    """How to build for it; all the rest is looked at on the CPU, whatever was asked for."""
    gpu = library.Device("CUDA0", "NVIDIA H100", "GPU", 1, 2)
    monkeypatch.setattr(library, "can_offload", lambda *_: True)
    monkeypatch.setattr(library, "devices", lambda: [gpu])
    know(monkeypatch, WORKS, DIES)
    section = machine.first_pass(Settings(target_options=ModelOptions(n_gpu_layers=asked)))
    (finding,) = section.findings
    assert finding.wrong
    assert "NVIDIA H100" in finding.problem
    assert "-DGGML_CUDA=on" in finding.hint
    assert "on the GPU: ends the process (SIGSEGV)" in section.text
    assert section.value.target_options.n_gpu_layers == "none"
    assert section.value.draft_options.n_gpu_layers == "none"
    know(monkeypatch, WORKS, WORKS)
    section = machine.first_pass(Settings())
    assert section.text.endswith("on the GPU: works")
    assert section.value == Settings()


def test_a_build_that_dies_everywhere_ends_the_report(dspark, tiny_files, monkeypatch):
    """Nothing is loaded; exit code 1, and what to do."""
    know(monkeypatch, DEAD)
    result = dspark("doctor", "-m", tiny_files.target, "--json")
    assert result.exit_code == 1
    sections = json.loads(result.stdout)["sections"]
    assert list(sections) == ["versions", "build", "devices", "first pass"]
    (finding,) = sections["first pass"]["findings"]
    assert "ends the process (SIGILL)" in finding["problem"]
    assert library.install_command() in finding["hint"]
