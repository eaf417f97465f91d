"""The doctor on real and on broken models: every check a line, and the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import DraftOptions, ModelOptions, Settings
from dspark_gguf.doctor import examine, machine, measured, models
from dspark_gguf.doctor.report import Finding, Report, Section, discreet
from dspark_gguf.engine import build, library
from dspark_gguf.engine.fit import Need, need_of, room
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.errors import EngineError, PairError
from tests.tiny_gguf import Tiny, write_llama

SMALL = ("-c", 256, "--no-learn")
MACHINE, FILES = {"versions", "build", "devices"}, {"models", "target", "draft", "memory"}
ALL = MACHINE | FILES | {"load", "pair", "costs", "speed", "logits", "threads", "attention"}


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """What else this machine does, and which GPU it has, is not what is tested."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(measured, "_BUDGET", 0.3)


def told(result):
    """What `doctor --json` printed, by section."""
    tree = json.loads(result.stdout)
    assert tree["well"] == (result.exit_code == 0)
    assert tree["exit_code"] == result.exit_code
    return tree["sections"]


def test_a_pair_that_is_well(dspark, tiny_files):
    """Every check has its section and its facts; advice alone does not make it wrong."""
    result = dspark("doctor", "-m", tiny_files.target, "-d", tiny_files.draft, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 0, sections
    assert set(sections) == ALL
    assert sections["versions"]["dspark-gguf"] in sections["versions"]["text"]
    assert sections["target"]["need"]["n_ctx"] == 256
    assert sections["memory"]["fits"]
    assert sections["pair"]["places"] == {"target": "CPU", "draft": "CPU"}
    assert sections["costs"]["milliseconds"]["1"] > 0
    assert sections["speed"]["usual"].keys() == {"code", "chat"}
    assert sections["logits"]["differences"][0]["depth"] == 16
    assert all(not finding["wrong"] for part in sections.values() for finding in part["findings"])


def test_one_screen(dspark, demo_files):
    """The demo pair without options: lines that fit into an issue, and a last one that sums up."""
    result = dspark("doctor", "-c", 1024)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    for name in ALL - {"load"}:
        assert any(line.startswith(f"{name:<11}") for line in lines), name
    assert "SmolLM2-135M-Instruct-Q8_0.gguf" in result.stdout
    assert lines[-1].startswith("well: ")
    # A draft of 60 % of its target's bytes.
    assert "- needed a draft of at most an eighth of the target on a CPU" in result.stdout


BROKEN = {
    "missing": ("a model file", "nothing at"),
    "empty": ("a GGUF model", "an empty file"),
    "text": ("a GGUF model", "begins with"),
    "truncated": ("a complete GGUF", ""),
    "embedding": ("a model that generates text", "an embedding or encoder model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_target_is_a_line(dspark, tiny_files, tmp_path, name):
    """Needed, got, do; the machine is described all the same, and so is the draft."""
    path = getattr(tiny_files, name, tmp_path / "missing.gguf")
    sections = told(dspark("doctor", "-m", path, "-d", tiny_files.draft, "--json", *SMALL))
    found = [finding for part in sections.values() for finding in part["findings"]]
    needed, got = BROKEN[name]
    (wrong,) = [finding for finding in found if finding["wrong"]]
    assert needed in wrong["needed"]
    assert got in wrong["got"]
    assert wrong["do"]
    assert sections.keys() >= MACHINE
    assert sections["draft"]["file"] == "draft.gguf"


@pytest.mark.parametrize("name", ["missing", "empty", "text", "truncated"])
def test_a_broken_draft_does_not_hide_the_target(dspark, tiny_files, tmp_path, name):
    """The target is measured without it; exit code 1."""
    path = getattr(tiny_files, name, tmp_path / "missing.gguf")
    result = dspark("doctor", "-m", tiny_files.target, "-d", path, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 1
    assert BROKEN[name][0] in json.dumps(sections)
    assert sections["costs"]["milliseconds"]["1"] > 0
    assert "without a draft" in sections["speed"]["text"]


def test_a_pair_that_does_not_fit_ends_with_3(dspark, tiny_files, tmp_path):
    """The first token that differs is named; the target is measured all the same."""
    other = write_llama(tmp_path / "other.gguf", Tiny(changed=((70, "zzz"),)))
    result = dspark("doctor", "-m", tiny_files.target, "-d", other, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 3
    (finding,) = sections["pair"]["findings"]
    assert "token 70" in finding["needed"]
    assert sections["costs"]["milliseconds"]["1"] > 0
    text = dspark("doctor", "-m", tiny_files.target, "-d", other, *SMALL).stdout
    assert "! needed a draft with the vocabulary of target.gguf" in text
    assert text.splitlines()[-1].startswith("not well: 1 wrong (!)")


def test_a_recurrent_target_is_no_fault(dspark, tiny_files):
    """Plain decoding only is said, and nothing is measured that it cannot do."""
    result = dspark("doctor", "-m", tiny_files.mamba, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 0, sections
    assert "plain decoding only" in sections["pair"]["text"]
    assert "costs" not in sections


def test_a_cache_that_llama_cpp_refuses(dspark, tiny_files):
    """A quantized V cache without flash attention."""
    words = ("-m", tiny_files.target, "-ctv", "q8_0", "-fa", "off", "--json", *SMALL)
    result = dspark("doctor", *words)
    assert result.exit_code == 1
    (finding,) = told(result)["load"]["findings"]
    assert "flash_attn" in finding["got"]


def test_what_does_not_fit_is_not_loaded(dspark, tiny_files, monkeypatch):
    """The memory is counted from the header: no swapping to find it out."""

    def refuse(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("dspark_gguf.engine.pair.Pair.__init__", refuse)
    result = dspark("doctor", "-m", tiny_files.wide, "-c", 2**31 - 1, "--json")
    assert result.exit_code == 1
    (finding,) = told(result)["memory"]["findings"]
    assert "GiB" in finding["got"]
    assert "-ctk q8_0" in finding["do"]


def test_a_draft_without_a_target_is_wrong_use(dspark, tiny_files):
    """As everywhere: exit code 2, and no report of something else."""
    result = dspark("doctor", "-d", tiny_files.draft)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "-m TARGET.gguf" in result.stderr


def test_the_machine_alone(dspark, monkeypatch):
    """Without -m and without the demo package: well, and it says how to look at a pair."""
    monkeypatch.setattr("dspark_gguf.catalog.demo.PACKAGE", "no_such_package")
    result = dspark("doctor")
    assert result.exit_code == 0
    assert "-m TARGET.gguf -d DRAFT.gguf" in result.stdout
    assert "dspark-gguf[demo]" in result.stdout


BLOCKED = """
import sys
sys.modules["llama_cpp"] = None
from dspark_gguf.cli import main
main(["doctor"])
"""


def test_a_llama_cpp_that_cannot_be_loaded():
    """A missing library is the commonest fault of an installation: a line, not a traceback."""
    run = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert run.returncode == 1
    assert "Python 3" in run.stdout
    assert "llama_cpp" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr


def test_an_idle_gpu_is_wrong_unless_asked_for(monkeypatch):
    """A build for the CPU beside a GPU: how to build for it; who asks for none knows."""
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA GeForce RTX 3060"])
    monkeypatch.setattr(library, "can_offload", lambda: False)
    (finding,) = machine.build(Settings()).findings
    assert finding.wrong
    assert "RTX 3060" in finding.needed
    assert "-DGGML_CUDA=on" in finding.do
    asked = Settings(target_options=ModelOptions(n_gpu_layers="none"))
    assert not machine.build(asked).findings[0].wrong
    monkeypatch.setattr(library, "can_offload", lambda: True)
    assert machine.build(Settings()).findings == ()


def test_which_gpus_the_system_knows(monkeypatch, tmp_path):
    """From nvidia-smi, as it answers; a broken driver is no GPU."""
    monkeypatch.undo()
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
    monkeypatch.setattr("os.getloadavg", lambda: (500.0, 0.0, 0.0))
    (finding,) = machine.devices().findings
    assert not finding.wrong
    assert "500.0" in finding.got


def test_no_private_names(monkeypatch):
    """Home is `~`, whatever the depth; the user's name in other paths goes as well."""
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    tree = {"a": ["nothing at /home/alice/m.gguf"], "b": "/home/alice", "c": 3}
    assert discreet(tree) == {"a": ["nothing at ~/m.gguf"], "b": "~", "c": 3}
    assert discreet("/home/alicent/m.gguf") == "/home/alicent/m.gguf"
    assert discreet("/run/media/alice/usb/m.gguf") == "/run/media/USER/usb/m.gguf"


def test_the_whole_report_is_discreet(dspark, tiny_files, monkeypatch):
    """In text and in JSON, in errors too."""
    home = tiny_files.target.parent
    monkeypatch.setenv("HOME", str(home))
    words = ("doctor", "-m", home / "missing.gguf", "-d", tiny_files.empty)
    for more in ((), ("--json",)):
        output = dspark(*words, *more).output
        assert str(home) not in output
        assert "~/missing.gguf" in output


def test_a_check_that_breaks_is_a_line():
    """Also where we are at fault: the rest goes on, with a place to report, and no path."""
    report, seen = Report(lambda error: seen.append(error)), []
    assert report.check("a", lambda: Section("fine", value=5)) == 5
    assert report.check("b", lambda: Section(str(1 / 0))) is None
    assert report.check("c", lambda: Section("fine, too")) is None
    (finding,) = report.findings
    assert "ZeroDivisionError" in finding.got
    assert "test_doctor.py:" in finding.got
    assert str(Path(__file__).parent) not in finding.got
    assert report.exit_code == 1
    assert len(seen) == 1


def raising(error):
    def work():
        raise error

    return work


def test_exit_codes():
    """3 for a pair that does not fit, before 1 for anything else, 0 for advice alone."""
    report = Report()
    report.check("a", lambda: Section("", findings=(Finding("x", "y", "z", wrong=False),)))
    assert report.exit_code == 0
    report.check("b", raising(EngineError("x", "y", "z")))
    assert report.exit_code == 1
    report.check("c", raising(PairError("x", "y", "z")))
    assert report.exit_code == 3


def test_debug_shows_where_a_check_ended(dspark, tiny_files, capfd):
    """Only when asked for, on stderr."""
    words = ("doctor", "-m", tiny_files.empty)
    assert "Traceback" not in dspark(*words).stderr
    assert "Traceback" in dspark(*words, "--debug").stderr


def test_features_as_llama_cpp_prints_them():
    """Several backends on one line; what is off is left out."""
    text = "CUDA : ARCHS = 800,900 | USE_GRAPHS = 1 | CPU : AVX2 = 1 | AVX512 = 0 | FMA = 1 | "
    assert build.parsed(text) == {"CUDA": ["ARCHS=800,900", "USE_GRAPHS"], "CPU": ["AVX2", "FMA"]}
    assert build.features().keys() >= {"CPU"}
    assert {"ggml", "llama.cpp"} <= build.versions().keys()


@pytest.mark.parametrize("name", ["target", "wide", "two_heads", "mamba"])
def test_what_a_model_takes_is_known_before_it_is_loaded(tiny_files, name):
    """The header's figures are those of the loaded model."""
    path = getattr(tiny_files, name)
    options = ModelOptions(cache_type_k="f32")
    with load_pair(path, target_options=options) as pair:
        need = need_of(read_header(path), options, pair.target_cache.n_ctx)
        assert need.cache == pair.target_cache.cache_bytes
        assert need.weights == pair.target.size
        assert need.layers == pair.target.n_layer + 1
        assert need.on_gpu == 0 or library.can_offload()


GIB = 1024**3
GPU = build.Device("CUDA0", "a GPU", "GPU", 8 * GIB, 12 * GIB)
CPU = build.Device("CPU", "a CPU", "CPU", 16 * GIB, 32 * GIB)


def test_where_models_would_sit_and_whether_there_is_room():
    """On the GPU as far as layers go there, else in main memory; -ngl for what fits."""
    assert room([CPU, GPU], ModelOptions(), on_gpu=True) == 8 * GIB
    assert room([CPU, GPU], ModelOptions(devices=("CUDA1",)), on_gpu=True) is None
    assert room([CPU, GPU], ModelOptions(), on_gpu=False) == 16 * GIB
    target = Need(weights=19 * GIB, cache=GIB, n_ctx=8192, layers=40, on_gpu=40)
    section = models.fit({"target": target}, [CPU, GPU], Settings())
    assert section.value is False
    (finding,) = section.findings
    assert finding.do.endswith("-ngl 15")  # 8 GiB but 5 %, of half a GiB each
    part = Need(weights=19 * GIB, cache=GIB, n_ctx=8192, layers=40, on_gpu=15)
    assert models.fit({"target": part}, [CPU, GPU], Settings()).value is True
    assert models.fit({"target": part, "draft": part}, [CPU, GPU], Settings()).value is False


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
    assert "-ngld" in found.do
    (found,) = models.advice(fake_pair(draft_size=126))
    assert "13%" in found.got
    on_metal = {"target_gpu_layers": 33, "draft_gpu_layers": 20, "target_place": "Metal"}
    assert models.advice(fake_pair(**on_metal)) == []
    (found,) = models.advice(fake_pair(**on_metal, target_name="big-UD-Q4_K_XL"))
    assert "XL" in found.got
    assert models.advice(fake_pair(target_name="big-UD-Q4_K_XL")) == []


def test_examine_is_for_python_too(tiny_files):
    """Lines of progress go to `say`; the report answers without printing."""
    settings = Settings(
        model=str(tiny_files.target),
        target_options=ModelOptions(n_ctx=128),
        draft_options=DraftOptions(n_ctx=128),
    )
    report = examine(settings)
    assert report.exit_code == 0
    assert "no draft model" in report.sections["pair"].text
