"""Long work shows how far it is, and Ctrl-C keeps what was measured."""

from __future__ import annotations

import os
import re
import signal
from threading import Event
from time import sleep

import pytest
from click.testing import CliRunner

from dspark_gguf import load_pair
from dspark_gguf.catalog import suggest
from dspark_gguf.catalog.suggest import Candidate
from dspark_gguf.chat.progress import counting, uninterrupted, waited_for, working
from dspark_gguf.cli import main
from dspark_gguf.config import Settings, Speculation
from dspark_gguf.engine import timing
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.timing import quick_profile
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned import forget_all
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.measure import profile, trace
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.testing import TableModel, random_rows


@pytest.fixture
def command(tiny_files):
    """Runs a command about the tiny pair."""

    def run(name, *words):
        pair = ["-m", tiny_files.target, "-d", tiny_files.draft, "-c", 256, "--no-learn"]
        return CliRunner().invoke(main, [name, *map(str, [*pair, *words])])

    return run


def stop_in_call(monkeypatch, module, name, number):
    """Press Ctrl-C while that function works for the n-th time."""
    original, calls = getattr(module, name), []

    def work(*given, **named):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*given, **named)

    monkeypatch.setattr(module, name, work)


def test_work_that_is_interrupted_ends_before_the_next_item():
    """What was done is done."""
    interrupt, seen = Event(), []
    for item in (items := uninterrupted("abc", interrupt)):
        seen.append(item)
        if item == "b":
            interrupt.set()
            break
    with pytest.raises(Cancelled):
        next(items)
    assert seen == ["a", "b"]


def test_loading_tells_how_long_it_takes(tiny_files, monkeypatch):
    """And Ctrl-C ends it between two tensors, as a KeyboardInterrupt."""
    monkeypatch.setattr("dspark_gguf.engine.model._PATIENCE", 0.0)
    told = []
    with load_pair(tiny_files.target, "none", on_progress=lambda *line: told.append(line)):
        texts = {text for text, _ in told}
    assert texts == {"loading target"}
    assert all(seconds >= 0.0 for _, seconds in told)

    def press(text, seconds=0.0):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        load_pair(tiny_files.target, "none", on_progress=press)


def test_the_first_measurement_counts_down(tiny_files):
    """By the budget; where a pass takes as long as all of it, by what passes take."""
    told = []
    forget_all()
    with load_pair(tiny_files.target, "none", on_progress=lambda *line: told.append(line)) as pair:
        pair.learned(Speculation())
    (first, budget), (again, left) = told
    assert first == again == "measuring once what the model costs on this machine"
    assert 0.0 < left < budget

    class Slow(TableModel):
        def decode(self, tokens, n_rows):
            sleep(0.02)
            return super().decode(tokens, n_rows)

    left = []
    quick_profile(Slow(random_rows(50), 64), None, LearnedCosts(), 0.001, 8, left.append)
    assert left[0] == 0.001
    assert left[1] > 0.04  # two more, of three


def test_ctrl_c_ends_the_first_measurement(command, monkeypatch):
    """Exit code 130, and nothing on stdout."""
    forget_all()
    stop_in_call(monkeypatch, timing, "passes", 1)
    done = command("run", "hi", "-n", 4)
    assert (done.exit_code, done.stdout) == (130, "")
    assert "unexpected" not in done.stderr


def test_ctrl_c_where_nothing_is_left_to_measure(command, monkeypatch):
    """Nobody looks at the event before the preparation ends; the answer does not begin."""
    monkeypatch.setattr(Pair, "learned", lambda *_: signal.raise_signal(signal.SIGINT))
    done = command("run", "hi", "-n", 4)
    assert (done.exit_code, done.stdout) == (130, "")


@pytest.mark.parametrize(
    ("seconds", "end"),
    [
        (0.0, "..."), (9.2, "- about 9 s left"), (0.5, "- nearly done"),
        (-2.0, "- takes longer than usual"),
    ],
)  # fmt: skip
def test_work_is_shown_on_a_terminal_alone(monkeypatch, capsys, seconds, end):
    """From its first line on; elsewhere nothing."""
    with working() as tell:
        tell("measuring", seconds)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with working() as tell:
        tell("measuring", seconds)
    assert f"measuring {end}" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)


def test_long_work_says_where_it_is(monkeypatch, capsys):
    """Each minute where there is no terminal; on one, in percent."""
    said = []
    for every, lines in ((60.0, []), (0.0, ["training: 50%, good", "training: 100%, better"])):
        monkeypatch.setattr("dspark_gguf.chat.progress._EVERY", every)
        with counting(1, title="training", say=said.append) as show:
            show(0.5, "good")
            show(1.5, "better")
        assert said == lines
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with counting(1, title="training", say=said.append) as show:
        show(0.5, "good")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"training .* 50% good", shown)
    assert said == lines


def test_a_long_prompt_is_spoken_of(monkeypatch, capsys):
    """Only if it takes long; the line is gone before the answer, an error comes through."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")

    def rounds(seconds):
        sleep(seconds)
        yield from "ab"
        raise Cancelled

    for patience, said in ((0.0, "reading ..."), (9.0, "")):
        monkeypatch.setattr("dspark_gguf.chat.progress._PATIENCE", patience)
        items = waited_for(rounds(0.2), "reading")
        assert next(items) == "a"
        shown = capsys.readouterr().err
        assert said in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
        assert bool(shown) == bool(said)
        assert next(items) == "b"
        with pytest.raises(Cancelled):
            next(items)
        assert capsys.readouterr().err == ""


def test_a_trace_keeps_the_texts_that_are_done(command, monkeypatch, tmp_path):
    """The one that was broken off is left out; exit code 130."""
    stop_in_call(monkeypatch, trace, "Tracer", 3)
    words = ("-o", tmp_path / "chains.npz", "--positions", 4, "--depth", 2)
    done = command("trace", *words)
    assert done.exit_code == 130, done.output
    assert "interrupted: this is what was measured" in done.stderr
    assert len(load_chains(tmp_path / "chains.npz")) == 2


def test_a_trace_without_a_text_writes_nothing(command, monkeypatch, tmp_path):
    """And says nothing of an unexpected error."""
    stop_in_call(monkeypatch, trace, "Tracer", 1)
    done = command("trace", "-o", tmp_path / "chains.npz", "--positions", 4, "--depth", 2)
    assert done.exit_code == 130
    assert "unexpected" not in done.output
    assert not (tmp_path / "chains.npz").exists()


def test_a_profile_keeps_the_depths_that_are_done(command, monkeypatch):
    """Of two, one."""
    stop_in_call(monkeypatch, profile, "passes", 3)  # the target's and the draft's of the first
    done = command("profile", "--rows", 3, "--depth", 8, "--depth", 16)
    assert done.exit_code == 130, done.output
    assert "at 8: ms" in done.stdout
    assert "at 16: ms" not in done.stdout


def test_suggestions_estimate_what_was_not_measured(tiny_files, monkeypatch):
    """The first draft was measured, the second one was not reached."""
    stop_in_call(monkeypatch, suggest, "_measured", 3)  # the target's own costs are the first
    drafts = [
        Candidate(name, "x", "plain", 1000, tiny_files.draft) for name in ("one", "two", "three")
    ]
    settings = Settings.model_validate({"speculation": {"learn": False}})
    found = suggest.suggestions(tiny_files.target, drafts, settings)
    basis = {each.draft: each.speedup.basis for each in found}
    assert basis == {"one": "expected", "two": "estimated", "three": "estimated"}
