"""The doctor on real and on broken models: every check a line, and the rest goes on."""

import json

import pytest

from dspark_gguf.config import DraftOptions, ModelOptions, Settings
from dspark_gguf.doctor import examine
from dspark_gguf.doctor.report import Finding, Section
from dspark_gguf.errors import EngineError
from tests.children import run_python
from tests.doctor_report import ALL, MACHINE, SMALL, told
from tests.tiny_gguf import Tiny, write_llama

pytestmark = pytest.mark.usefixtures("quiet_machine")


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
    kinds = set(sections["speed"]["speedup"]["kinds"])
    assert kinds in ({"code", "chat"}, {"new text", "copied text"})  # by what drafts cost just now
    assert sections["logits"]["differences"][0]["depth"] == 16
    assert all(not finding["wrong"] for part in sections.values() for finding in part["findings"])


BROKEN = {
    "missing": ("cannot read", "no such file"),
    "empty": ("not a GGUF model", "it is empty"),
    "text": ("not a GGUF model", "begins with"),
    "truncated": ("not a complete GGUF", ""),
    "embedding": ("generates no text", "an embedding or encoder model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_target_is_a_line(dspark, tiny_files, tmp_path, name):
    """Problem and hint; the machine is described all the same, and so is the draft."""
    path = getattr(tiny_files, name, tmp_path / "missing.gguf")
    sections = told(dspark("doctor", "-m", path, "-d", tiny_files.draft, "--json", *SMALL))
    found = [finding for part in sections.values() for finding in part["findings"]]
    (wrong,) = [finding for finding in found if finding["wrong"]]
    for words in BROKEN[name]:
        assert words in wrong["problem"]
    assert wrong["hint"]
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
    assert "copied text" in sections["speed"]["text"]


def test_a_draft_that_means_nothing_does_not_hide_the_target(dspark, tiny_files):
    """A misspelt name is one line, and the target is measured without a draft."""
    result = dspark("doctor", "-m", tiny_files.target, "-d", "qwen9", "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 1
    assert "'qwen9'" in sections["models"]["findings"][0]["problem"]
    assert "copied text" in sections["speed"]["text"]


def test_a_draft_with_another_tokenizer_is_no_fault(dspark, tiny_files, tmp_path):
    """Both are measured."""
    other = write_llama(tmp_path / "other.gguf", Tiny(changed=((70, "zzz"),)))
    result = dspark("doctor", "-m", tiny_files.target, "-d", other, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 0, sections
    assert "the draft has another vocabulary than the target's, " in sections["pair"]["text"]
    assert sections["costs"]["milliseconds"]["1"] > 0


def test_a_recurrent_target_is_no_fault(dspark, tiny_files):
    """How it takes tokens back is said, and all is measured."""
    result = dspark("doctor", "-m", tiny_files.mamba, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 0, sections
    assert sections["pair"]["rollback"] in sections["pair"]["text"]
    assert sections["pair"]["rollback"] != "removal"
    assert sections["costs"]["milliseconds"]["1"] > 0


def test_what_was_asked_for_and_is_not_done_is_wrong(dspark, tiny_files, monkeypatch):
    """Layers for a GPU that the build cannot use, of each model."""
    monkeypatch.setattr("dspark_gguf.engine.library.can_offload", lambda *_: False)
    files = ("-m", tiny_files.target, "-d", tiny_files.draft)
    result = dspark("doctor", *files, "-ngl", "all", "-ngld", 7, "--json", *SMALL)
    found = told(result)["pair"]["findings"]
    assert result.exit_code == 1
    assert sum("no GPU offload" in finding["problem"] for finding in found) == 2


def test_costs_that_cannot_be_measured(dspark, tiny_files, monkeypatch):
    """What does not need them is looked at all the same."""

    def refuse(*_):
        raise EngineError("a", "B.")

    monkeypatch.setattr("dspark_gguf.engine.measuring.quick_profile", refuse)
    result = dspark("doctor", "-m", tiny_files.target, "--json", *SMALL)
    sections = told(result)
    assert result.exit_code == 1
    assert sections["costs"]["findings"][0]["problem"] == "a"
    assert "speed" not in sections
    assert sections["threads"]["text"]
    assert sections["logits"]["differences"][0]["depth"] == 16


def test_a_cache_that_llama_cpp_refuses(dspark, tiny_files):
    """A quantized V cache without flash attention."""
    words = ("-m", tiny_files.target, "-ctv", "q8_0", "-fa", "off", "--json", *SMALL)
    result = dspark("doctor", *words)
    assert result.exit_code == 1
    (finding,) = told(result)["load"]["findings"]
    assert "flash_attn" in finding["problem"]


def test_what_does_not_fit_is_not_loaded(dspark, tiny_files, monkeypatch):
    """The memory is counted from the header: no swapping to find it out."""

    def refuse(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("dspark_gguf.engine.pair.Pair.__init__", refuse)
    result = dspark("doctor", "-m", tiny_files.wide, "-c", 2**31 - 1, "--json")
    assert result.exit_code == 1
    (finding,) = told(result)["memory"]["findings"]
    assert "GiB" in finding["problem"]
    assert "-ctk q8_0" in finding["hint"]


def test_a_draft_without_a_target_is_wrong_use(dspark, tiny_files):
    """As everywhere: exit code 2, and no report of something else."""
    result = dspark("doctor", "-d", tiny_files.draft)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "-m TARGET.gguf" in result.stderr


BLOCKED = """
import sys
sys.modules["llama_cpp"] = None
from dspark_gguf.cli import main
main(["doctor"])
"""


def test_a_llama_cpp_that_cannot_be_loaded():
    """A missing library is the commonest fault of an installation: a line, not a traceback."""
    run = run_python("-c", BLOCKED)
    assert run.returncode == 1
    assert "Python 3" in run.stdout
    assert "llama_cpp" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr


def test_the_whole_report_is_discreet(dspark, tiny_files, monkeypatch):
    """In text and in JSON, in errors too."""
    home = tiny_files.target.parent
    monkeypatch.setenv("HOME", str(home))
    words = ("doctor", "-m", home / "missing.gguf", "-d", tiny_files.empty)
    for more in ((), ("--json",)):
        output = dspark(*words, *more).output
        assert str(home) not in output
        assert "~/missing.gguf" in output


def test_debug_shows_where_a_check_ended(dspark, tiny_files, capfd):
    """Only when asked for, on stderr."""
    words = ("doctor", "-m", tiny_files.empty)
    assert "Traceback" not in dspark(*words).stderr
    assert "Traceback" in dspark(*words, "--debug").stderr


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


@pytest.mark.parametrize("load", [0.0, 500.0])
def test_a_busy_machine_suggests_no_other_options(dspark, tiny_files, monkeypatch, load):
    """What was faster there was lucky; a problem stays one."""
    advice = Finding("-t 1 takes x0.5", "Add it.", wrong=False)

    def fail(*_):
        raise EngineError("a", "B.")

    monkeypatch.setattr("psutil.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(
        "dspark_gguf.doctor.alternatives.threads", lambda pair: Section("x", findings=(advice,))
    )
    monkeypatch.setattr("dspark_gguf.doctor.alternatives.attention", fail)
    sections = told(dspark("doctor", "-m", tiny_files.target, "--json", *SMALL))
    assert len(sections["threads"]["findings"]) == (load == 0.0)
    assert [finding["problem"] for finding in sections["attention"]["findings"]] == ["a"]
