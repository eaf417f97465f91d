"""What ``inspect`` says of files, and that it loads nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dspark_gguf.catalog.inspect import as_text, inspect
from dspark_gguf.cli import main
from dspark_gguf.engine import model
from tests.tiny_dflash import Block, write_dflash


def run(*words):
    result = CliRunner().invoke(main, ["inspect", *map(str, words)])
    assert "Traceback" not in result.output
    return result


def test_a_model(tiny_files, monkeypatch):
    """Shape, sizes, tokenizer and template come from the header alone."""
    monkeypatch.setattr(model.Model, "__init__", None)
    shown = run(tiny_files.target)
    assert shown.exit_code == 0, shown.output
    for words in (
        "llama",
        "263 tokens",
        "f32 100%",
        "layers            2",
        "hands out layers  yes",
    ):
        assert words in shown.stdout
    facts = json.loads(run(tiny_files.target, "--json").stdout)
    assert facts["kind"] == "model"
    assert facts["shape"] == {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "context": 256}
    assert facts["parameters"] == sum(facts["quantization"]["parameters_by_type"].values())
    assert facts["hands_out_layers"]
    assert not inspect(tiny_files.mamba)["hands_out_layers"]


def test_each_fact_takes_one_line(tiny_files):
    facts = inspect(tiny_files.target) | {"name": "A model\n\nlicense           none"}
    lines = as_text(facts).splitlines()
    assert lines[1] == "name              A model  license           none"


@pytest.mark.parametrize(
    ("block", "kind", "drafts", "words"),
    [
        (Block(), "DSpark", 6, "markov, confidence"),
        (Block(anchor_first=False), "DSpark", 5, "a bonus anchor"),
        (Block(markov=False, confidence=False, anchor_first=False), "DFlash", 5, "none"),
        (Block(markov=False, confidence=False, selector=True), "DFlash2", 5, "none"),
        (Block(reduced=True), "DSpark", 6, "131 tokens"),
        (Block(causal=True, own_head=True), "DSpark", 6, "causal inside a block"),
    ],
)
def test_a_block_draft(block, kind, drafts, words, tmp_path):
    """Kind, block, heads and the target that it fits."""
    path = write_dflash(tmp_path / "draft.gguf", block)
    draft = json.loads(run(path, "--json").stdout)["draft"]
    assert (draft["kind"], draft["drafts_per_block"]) == (kind, drafts)
    assert draft["fits"]["embedding_length"] == 64
    assert draft["fits"]["least_layers"] == 2
    own = block.own_head or block.reduced
    assert draft["borrows"] == ([] if own else ["embeddings", "output head"])
    shown = run(path).stdout
    assert f"{kind}, {drafts} guesses a block of 6" in shown
    assert words in shown


@pytest.mark.parametrize("name", ["text", "empty", "truncated"])
def test_no_gguf(name, tiny_files, tmp_path):
    """One line, as everywhere; a file cut behind its header still tells what it is."""
    path = getattr(tiny_files, name)
    if name == "truncated":
        path = tmp_path / "cut.gguf"
        path.write_bytes(tiny_files.target.read_bytes()[:3000])
    result = run(path)
    assert result.exit_code == 1
    assert result.output.count("\n") == 1


def test_the_real_pair(demo_files):
    """Sizes as published."""
    facts = inspect(demo_files[0])
    assert facts["quantization"]["file_type"] == "Q8_0"
    assert facts["tokenizer"]["tokens"] == 49152
    assert 134e6 < facts["parameters"] < 135e6
