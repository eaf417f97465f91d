"""What a trial of the build found decides how models are loaded."""

from __future__ import annotations

import llama_cpp
import pytest

from dspark_gguf import DSparkLlama, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.memory import wanted_gpu_layers
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.quantize import quantize
from dspark_gguf.errors import EngineError
from tests.fakes import rows_of
from tests.tiny.test_trial import DEAD, DIES, NEVER, SLOWER, WORKS


@pytest.fixture
def loads(monkeypatch):
    """How models were loaded, in order."""
    seen, real = [], llama_cpp.llama_model_load_from_file

    def load(path, params):
        seen.append(params.use_extra_bufts)
        return real(path, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    return seen


def know(monkeypatch, extra, gpu=WORKS):
    monkeypatch.setattr(trial, "_known", {"extra buffers": extra, "gpu": gpu})


@pytest.mark.parametrize("extra", [DIES, SLOWER, WORKS])
def test_both_models_are_loaded_so(tiny_files, monkeypatch, loads, extra):
    """With what works here; one note, and the rebuild in it where one helps."""
    know(monkeypatch, extra)
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        pair.draft_cache()
        left_out = [note for note in pair.notes if "left out" in note]
    assert loads == [extra is WORKS] * 2
    assert len(left_out) == (extra is not WORKS)
    assert (trial.install_with_amx() in " ".join(left_out)) == (extra is DIES)


def test_whoever_wishes_otherwise(tiny_files, monkeypatch, loads):
    """An option overrules the trial, which is then not even made."""
    monkeypatch.setattr(trial, "outcome", None)
    on, off = ModelOptions(extra_buffers="on"), DraftOptions(extra_buffers="off")
    options = {"target_options": on, "draft_options": off}
    with load_pair(tiny_files.target, tiny_files.draft, **options) as pair:
        pair.draft_cache()
        assert pair.left_out == []
    assert loads == [True, False]


def test_the_drop_in_and_its_draft(tiny_files, monkeypatch, loads, capfd):
    """The same; a line beside the other one where it is verbose."""
    options = {"n_ctx": 256, "verbose": False, "draft_model": str(tiny_files.draft)}
    for extra in (DIES, WORKS):
        know(monkeypatch, extra)
        llama = DSparkLlama(str(tiny_files.target), **options)
        assert llama.model_params.use_extra_bufts is (extra is WORKS)
        assert llama.__getstate__()["extra_buffers"] == "auto"
        llama.close()
    assert loads == [False, True]  # the drafts; `Llama` loads by itself
    assert capfd.readouterr().err == ""
    know(monkeypatch, DIES)
    DSparkLlama(str(tiny_files.target), **{**options, "verbose": True}).close()
    assert capfd.readouterr().err.count("left out") == 1


def test_a_build_that_cannot_run_is_refused(tiny_files, monkeypatch):
    """Instead of ending the process."""
    know(monkeypatch, DEAD)
    for make in (load_pair, DSparkLlama):
        with pytest.raises(EngineError, match=r"ends the process \(SIGILL\)"):
            make(str(tiny_files.target))


def test_a_gpu_that_cannot_run_is_left_out_unless_asked_for(monkeypatch):
    """Where the trial says nothing, llama.cpp's own choice."""
    monkeypatch.setattr(library, "can_offload", lambda *_: True)
    for gpu, layers in ((WORKS, 2**30), (NEVER, 2**30), (DIES, 0)):
        know(monkeypatch, WORKS, gpu)
        assert wanted_gpu_layers(ModelOptions()) == layers
        assert wanted_gpu_layers(ModelOptions(n_gpu_layers="all")) == 2**30
        assert len(trial.notes("auto", on_gpu=True)) == (gpu is DIES)


def test_a_quantized_model_runs_in_this_build(tiny_files, tmp_path):
    """What this is for: passes of one row and of many, with whatever was found to work here."""
    file = tmp_path / "q8.gguf"
    quantize(tiny_files.wide, file, "Q8_0")
    with load_pair(file) as pair:
        for rows in (1, 2, 33):
            prefill(pair.target_cache, [1, 2, 3])
            assert len(rows_of(pair.target_cache, [4] * rows)) == rows


def test_one_line_on_stderr(dspark, tiny_files, monkeypatch):
    """Of two models, in a command."""
    know(monkeypatch, DIES)
    words = ("-m", tiny_files.target, "-d", tiny_files.draft, "-n", 4, "--spec", "on")
    result = dspark("run", "--raw", *words, "hello")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("left out") == 1
    assert "left out" not in result.stdout
