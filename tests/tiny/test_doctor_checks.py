"""The doctor's checks one by one: the machine, the files, and how a report is put together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions, Settings
from dspark_gguf.doctor import machine, models
from dspark_gguf.doctor.report import Finding, Report, Section, discreet
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.memory import Need, need_of, room
from dspark_gguf.errors import EngineError, PairError
from tests.tiny_kinds import WRITERS


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """What else this machine does is not what is tested."""
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))


def test_an_idle_gpu_is_wrong_unless_asked_for(monkeypatch):
    """A build for the CPU beside a GPU: how to build for it; who asks for none knows."""
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA GeForce RTX 3060"])
    monkeypatch.setattr(library, "can_offload", lambda *_: False)
    (finding,) = machine.features(Settings()).findings
    assert finding.wrong
    assert "RTX 3060" in finding.problem
    assert "-DGGML_CUDA=on" in finding.hint
    asked = Settings(target_options=ModelOptions(n_gpu_layers="none"))
    assert not machine.features(asked).findings[0].wrong
    monkeypatch.setattr(library, "can_offload", lambda *_: True)
    assert machine.features(Settings()).findings == ()


def test_which_gpus_the_system_knows(monkeypatch, tmp_path):
    """From nvidia-smi, as it answers; a broken driver is no GPU."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
    tool.chmod(0o755)
    assert machine.gpus() == ["NVIDIA H100 80GB HBM3"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "NVIDIA" not in " ".join(machine.gpus())
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "Apple" in machine.gpus()[0]


def test_a_busy_machine_is_said(monkeypatch):
    """Times that were measured beside other work mislead."""
    assert machine.devices().findings == ()
    monkeypatch.setattr("psutil.getloadavg", lambda: (500.0, 0.0, 0.0))
    (finding,) = machine.devices().findings
    assert not finding.wrong
    assert "500.0" in finding.problem


def test_no_private_names(monkeypatch):
    """Home is `~`, whatever the depth; the user's name in other paths goes as well."""
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    tree = {"a": ["nothing at /home/alice/m.gguf"], "b": "/home/alice", "c": 3}
    assert discreet(tree) == {"a": ["nothing at ~/m.gguf"], "b": "~", "c": 3}
    assert discreet("/home/alicent/m.gguf") == "/home/alicent/m.gguf"
    assert discreet("/run/media/alice/usb/m.gguf") == "/run/media/USER/usb/m.gguf"


def test_a_check_that_breaks_is_a_line():
    """Also where we are at fault: the rest goes on, with a place to report, and no path."""
    report, seen = Report(lambda error: seen.append(error)), []
    assert report.check("a", lambda: Section("fine", value=5)) == 5
    assert report.check("b", lambda: Section(str(1 / 0))) is None
    assert report.check("c", lambda: Section("fine, too")) is None
    (finding,) = report.findings
    assert "ZeroDivisionError" in finding.problem
    assert "test_doctor_checks.py:" in finding.problem
    assert str(Path(__file__).parent) not in finding.problem
    assert report.exit_code == 1
    assert len(seen) == 1


def raising(error):
    def work():
        raise error

    return work


def test_exit_codes():
    """3 for a pair that does not fit, before 1 for anything else, 0 for advice alone."""
    report = Report()
    report.check("a", lambda: Section("", findings=(Finding("x", "Y.", wrong=False),)))
    assert report.exit_code == 0
    report.check("b", raising(EngineError("x", "Y.")))
    assert report.exit_code == 1
    report.check("c", raising(PairError("x", "Y.")))
    assert report.exit_code == 3


def test_features_as_llama_cpp_prints_them():
    """Several backends on one line; what is off is left out."""
    text = "CUDA : ARCHS = 800,900 | USE_GRAPHS = 1 | CPU : AVX2 = 1 | AVX512 = 0 | FMA = 1 | "
    found = library.parse_features(text)
    assert found == {"CUDA": ["ARCHS=800,900", "USE_GRAPHS"], "CPU": ["AVX2", "FMA"]}
    assert library.features().keys() >= {"CPU"}
    assert {"ggml", "llama.cpp"} <= library.versions().keys()


@pytest.mark.parametrize("name", ["target", "wide", "two_heads", "mamba"])
def test_what_a_model_takes_is_known_before_it_is_loaded(tiny_files, name):
    """The header's figures are those of the loaded model."""
    path = getattr(tiny_files, name)
    options = ModelOptions(cache_type_k="f32")
    with load_pair(path, target_options=options) as pair:
        need = need_of(read_header(path), options, pair.target_cache.n_ctx)
        assert need.cache == pair.target_cache.context.cache_bytes
        assert need.weights == pair.target.size
        assert need.layers == pair.target.n_layer + 1
        assert need.on_gpu == 0 or library.can_offload()


@pytest.mark.parametrize("kind", ["llama", "lfm2", "mamba"])
def test_what_several_conversations_take(tmp_path, kind):
    """Each has its own state and snapshots of it; attention is shared."""
    path = WRITERS[kind](tmp_path / "m.gguf")
    with load_pair(path, conversations=4) as pair:
        need = need_of(read_header(path), ModelOptions(), pair.target_cache.context.n_ctx, n_seq=4)
        assert need.cache == pair.target_cache.context.cache_bytes


GIB = 1024**3
GPU = library.Device("CUDA0", "a GPU", "GPU", 8 * GIB, 12 * GIB)
CPU = library.Device("CPU", "a CPU", "CPU", 16 * GIB, 32 * GIB)


def test_where_models_would_sit_and_whether_there_is_room():
    """On the GPU as far as layers go there, else in main memory; -ngl for what fits."""
    assert room([CPU, GPU], ModelOptions(), on_gpu=True) == 8 * GIB
    assert room([CPU, GPU], ModelOptions(devices=("CUDA1",)), on_gpu=True) is None
    assert room([CPU, GPU], ModelOptions(), on_gpu=False) == 16 * GIB
    target = Need(weights=19 * GIB, cache=GIB, n_ctx=8192, layers=40, on_gpu=40)
    section = models.fit({"target": target}, [CPU, GPU], Settings())
    assert section.value is False
    (finding,) = section.findings
    assert finding.hint.endswith("-ngl 15")  # 8 GiB but 5 %, of half a GiB each
    part = Need(weights=19 * GIB, cache=GIB, n_ctx=8192, layers=40, on_gpu=15)
    assert models.fit({"target": part}, [CPU, GPU], Settings()).value is True
    both = models.fit({"target": part, "draft": part}, [CPU, GPU], Settings())
    assert (both.value, both.facts["fits"]) == (True, False)  # the draft gives way
    assert [finding.hint.partition(";")[0] for finding in both.findings] == [
        "The draft gives way"
    ] * 2


def fake_pair(**changes):
    """Just what the advice looks at."""
    target = {"gpu_layers": 0, "size": 1000, "place": "CPU", "name": "big-Q4_0"}
    draft = {"gpu_layers": 0, "size": 100, "place": "CPU", "name": "small"}
    for key, value in changes.items():
        side, _, name = key.partition("_")
        {"target": target, "draft": draft}[side][name] = value
    return SimpleNamespace(target=SimpleNamespace(**target), draft=SimpleNamespace(**draft))


def test_advice_without_measuring():
    """Each follows from a stated fact; a pair that has none of the faults gets none."""
    assert models.advice(fake_pair()) == []
    assert models.advice(fake_pair(target_gpu_layers=33, draft_gpu_layers=20)) == []
    (found,) = models.advice(fake_pair(target_gpu_layers=33))
    assert "-ngld" in found.hint
    (found,) = models.advice(fake_pair(draft_size=126))
    assert "13%" in found.problem
    on_metal = {"target_gpu_layers": 33, "draft_gpu_layers": 20, "target_place": "Metal"}
    assert models.advice(fake_pair(**on_metal)) == []
    (found,) = models.advice(fake_pair(**on_metal, target_name="big-UD-Q4_K_XL"))
    assert "XL" in found.problem
    assert models.advice(fake_pair(target_name="big-UD-Q4_K_XL")) == []
