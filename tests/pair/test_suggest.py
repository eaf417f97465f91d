"""Which drafts fit a target, and what is expected of them."""

import pytest

from dspark_gguf.catalog import suggest as catalog
from dspark_gguf.catalog.suggest import make_draft
from dspark_gguf.engine.compatible import why_incompatible
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.quantize import FILE_TYPES, quantize, quantized_size
from tests.tiny_dflash import write_dflash


def test_more_that_does_not_fit(tiny_files, tmp_path, demo_files):
    """The target itself, another model's vocabulary, a block draft of a wider target."""
    target = read_header(tiny_files.target)
    assert why_incompatible(target, target) == "it is the target"
    assert why_incompatible(target, read_header(demo_files[1])) == "49152 tokens, not 263"
    block = read_header(write_dflash(tmp_path / "block.gguf"))
    assert why_incompatible(target, block) == ""
    assert "64 wide" in why_incompatible(read_header(tiny_files.wide), block)


def test_suggest_without_a_target(dspark):
    """The demo pair's, as for all commands; a draft needs the target that it is for."""
    done = dspark("suggest", "--no-learn")
    assert done.exit_code == 0, done.stderr
    assert "drafts for demo" in done.stdout
    done = dspark("suggest", "-d", "draft.gguf")
    assert done.exit_code == 2
    assert "-m" in done.stderr


def test_make_a_draft(model_folder, demo_files, dspark):
    """A whole GGUF in the cache folder, made once, found by the next `suggest`, fit to draft."""
    target, _ = demo_files
    done = dspark("suggest", "-m", target, "--make-draft", "Q4_0", "--no-learn")
    assert done.exit_code == 0, done.stderr
    [made] = (model_folder.parent / "cache").rglob("*as-Q4_0*.gguf")
    assert str(made) in done.stdout
    assert "measured" in done.stdout
    assert why_incompatible(read_header(target), read_header(made)) == ""
    again = []
    assert make_draft(target, "Q4_0", again.append) == made
    assert again == []
    assert made in [each.path for each in catalog.candidates(read_header(target), [])]
    assert not list(made.parent.glob("*.part"))


@pytest.mark.parametrize("file_type", ["Q2_K", "Q4_0", "Q8_0"])
def test_the_size_of_a_quantization(demo_files, tmp_path, file_type):
    """Within a fifth of what it becomes."""
    made = tmp_path / "made.gguf"
    quantize(demo_files[0], made, file_type)
    size = made.stat().st_size
    assert quantized_size(read_header(demo_files[0]), file_type) == pytest.approx(size, rel=0.2)
    assert set(FILE_TYPES) >= {"Q2_K", "Q4_0", "Q8_0"}
