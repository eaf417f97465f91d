"""What commands are given: files without anything in them, words that belong together."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.measure.prompts import read_prompts

BUILD = ("lookup", "build")


@pytest.fixture
def model(tiny_files):
    return "-m", tiny_files.target


def test_a_store_of_nothing_is_an_error(dspark, model, tmp_path):
    """Each file that is left out says why, and no store is written."""
    (tmp_path / "old.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "zero.bin").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_text("")
    store = tmp_path / "mine.lookup"
    done = dspark(*BUILD, tmp_path, "-o", store, *model)
    assert done.exit_code == 2
    assert f"left out: {tmp_path / 'old.txt'} (not UTF-8 text)" in done.stderr
    assert f"left out: {tmp_path / 'zero.bin'} (not text)" in done.stderr
    assert "there is no text in these files. Name files with text in UTF-8." in done.stderr
    assert not store.exists()


def test_a_store_does_not_replace_its_own_text(dspark, model, tmp_path):
    """Named or in a folder; an older store in the folder may be replaced."""
    text, store = tmp_path / "b.txt", tmp_path / "b.lookup"
    text.write_text("one two three")
    for named in (text, tmp_path):
        done = dspark(*BUILD, named, "-o", text, *model)
        assert done.exit_code == 2
        assert "b.txt is one of the texts. Name another file with -o." in done.stderr
        assert text.read_text() == "one two three"
    for _ in range(2):
        assert dspark(*BUILD, tmp_path, "-o", store, *model).exit_code == 0


@pytest.mark.parametrize("words", [("run", "--jsonl"), ("trace", "-o", "x.npz", "--prompts"),
                                   ("calibrate", "--prompts"), ("bench", "--prompts")])  # fmt: skip
def test_a_file_without_prompts(dspark, model, tmp_path, words, monkeypatch):
    """Said by every command alike."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    done = dspark(*words, path, *model)
    assert done.exit_code == 2
    assert f"{path} has no prompts. Write one." in done.stderr


def test_stdin_without_prompts(dspark, model):
    """By its name."""
    assert "stdin has no prompts" in dspark("run", "--jsonl", "-", *model).stderr


def test_a_prompt_without_quotes(dspark):
    """It is one argument."""
    done = dspark("run", "hi", "there")
    assert done.exit_code == 2
    assert "expected one prompt, got 2. Put the prompt in quotes." in done.stderr


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_template_that_cannot_think(dspark, model, command):
    """A note, as /think says; not without the option, nor where notes are not wanted."""
    said = "note: the chat template of this model cannot switch thinking"
    words = ("--spec", "off", "-c", 256, "-n", 2, *model)
    prompt = ("hi",) if command == "run" else ()
    assert said in dspark(command, *prompt, "--think", *words, stdin="hi\n").stderr
    assert said not in dspark(command, *prompt, *words, stdin="hi\n").stderr
    if command == "run":
        assert said not in dspark("run", "hi", "-q", "--no-think", *words).stderr
        assert said not in dspark("run", "hi", "--raw", "--think", *words).stderr


def test_one_of_a_thing(dspark, model, tmp_path):
    """One text, not 1 texts."""
    prompts = tmp_path / "one.jsonl"
    prompts.write_text('{"prompt": "hi"}')
    out = tmp_path / "chains.npz"
    done = dspark("trace", "-o", out, "--prompts", prompts, "--positions", 1, "-c", 256, *model)
    assert done.stdout == f"1 text, 1 position: {out}\n"
    assert dspark("run", "hi", "--check", "-n", 1, *model).stdout.startswith("equal: 1 token; ")


def test_too_little_for_a_calibration_is_refused_before_the_work(
    dspark, model, tmp_path, monkeypatch
):
    """One text, or no draft."""
    prompts = tmp_path / "p.jsonl"
    monkeypatch.setattr("dspark_gguf.measure.trace.record", None)
    for count, said in ((1, "two texts or more, not 1"), (2, "nothing is drafted")):
        prompts.write_text('{"prompt": "hi"}\n' * count)
        done = dspark("calibrate", "--prompts", prompts, "-c", 256, "-d", "none", *model)
        assert done.exit_code == 2
        assert said in done.stderr


def test_a_text_that_the_draft_cannot_hold(dspark, tiny_files, tmp_path):
    """The option that helps is named, and the file is not written; a text that fits is kept."""
    prompts, out = tmp_path / "p.jsonl", tmp_path / "chains.npz"
    long = json.dumps({"prompt": "a text that is longer than its context"})
    prompts.write_text(long)
    pair = ("-m", tiny_files.target, "-d", tiny_files.draft, "-c", 256, "-cd", 32)
    done = dspark("trace", "-o", out, "--prompts", prompts, "--positions", 4, *pair)
    assert done.exit_code == 4
    said = "the draft's context has 32. Use a larger --ctx-size-draft."
    assert said in done.stderr
    assert not out.exists()
    prompts.write_text(f'{{"prompt": "a"}}\n{long}\n{{"prompt": "b"}}')
    done = dspark("trace", "-o", out, "--prompts", prompts, "--positions", 4, "--depth", 2, *pair)
    assert done.exit_code == 0, done.stderr
    assert "left out: text 2: a text takes" in done.stderr
    assert said in done.stderr
    assert len(load_chains(out)) == 2


def test_domains_are_names(tmp_path):
    """On one line, for tables; without one, all."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "domain": null}\n{"prompt": "a", "domain": " x\\ny "}')
    assert [prompt.domain for prompt in read_prompts(path)] == ["all", "x y"]
    path.write_text('{"prompt": "a", "domain": {}}')
    with pytest.raises(UsageError, match=r"prompt 1 of .*: its domain is no text"):
        read_prompts(path)


def test_an_error_of_jinja_ends_with_one_full_stop(tiny_files):
    """Jinja's own has one, too."""
    with pytest.raises(UsageError) as caught:
        ChatTemplate(Model(tiny_files.target, ModelOptions()), "{% if %}")
    assert ".." not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        ChatTemplate(Model(tiny_files.target, ModelOptions()), "{% for x in y %}")
    assert ".." not in str(caught.value)
