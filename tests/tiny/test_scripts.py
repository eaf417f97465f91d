"""The maintainer's scripts do what they say."""

from __future__ import annotations

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.cost import FixedCosts
from dspark_gguf.engine.rollback import Rollback
from tests.fakes import restore_stale
from tests.fakes import rows_of as decode_text

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module, *words):
    result = CliRunner().invoke(module.main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(path, n=8):
    with load_pair(path, target_options=ModelOptions(n_ctx=64)) as pair:
        rows = decode_text(pair.target_cache, range(100, 100 + n))
        return np.array([rows[k] for k in range(n)])


def test_the_rig_says_what_the_demo_model_says(tmp_path, demo_files):
    """Three extra layers change no bit of any row: the rig is the demo target, only slower."""
    rig = tmp_path / "rig.gguf"
    run(script("make_rig"), rig, "--layers", 3)
    assert rig.stat().st_size > demo_files[0].stat().st_size
    np.testing.assert_array_equal(rows_of(rig), rows_of(demo_files[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["rig.gguf"]


@pytest.fixture
def small_regime(monkeypatch):
    """One prompt and one sampling: the script's way, not its figures."""
    module = script("measure_acceptance")
    monkeypatch.setattr(module, "PROMPTS", module.PROMPTS[:1])
    name = "temperature 1, no truncation"
    monkeypatch.setattr(module, "SAMPLINGS", {name: module.SAMPLINGS[name]})
    return module, name


def test_what_acceptance_rules_change(small_regime, demo_files):
    """Lossless rules move the dist by nothing, the lenient ones by something."""
    module, name = small_regime
    lines = run(module, "--tokens", 24, "--seeds", 1).splitlines()
    rules = json.loads(lines[-1])[name]
    assert list(rules) == ["plain", "rejection", "match", "typical", "threshold"]
    assert rules["plain"]["tokens/round"] == 1
    assert rules["rejection"]["moved"] == rules["match"]["moved"] == 0
    assert rules["typical"]["moved"] > 0
    assert rules["threshold"]["moved"] > 0


def test_a_short_soak(tmp_path, monkeypatch):
    """Every kind of cache, each for a chapter: the oracle agrees, and no handle is left open.

    The long run is `python scripts/soak.py`; only there memory has time to settle.
    """
    soak = script("soak")
    monkeypatch.setattr(soak, "TURNS", 25)
    found = soak.soak(len(soak.CAST) * soak.TURNS, seed=1, first=0, folder=tmp_path)
    assert found["worst difference"] < soak.TOLERANCE
    for event in ("edit", "retry", "reset", "abandoned", "interrupted", "settings", "read again"):
        assert found[event] > 4
    assert found["greedy answers checked"] > 2
    before, after = found["handles"]
    assert after == before


def test_the_soak_notices(tmp_path, monkeypatch):
    """With a wrong state after each rejection it ends, and says how to see that again."""
    soak, real = script("soak"), Rollback.back

    def stale(self, length, held):
        length = real(self, length, held)
        if self.checkpoints and length > self.checkpoints[0].length:
            restore_stale(self, length)
        return length

    monkeypatch.setattr(Rollback, "back", stale)
    with pytest.raises(AssertionError, match=r"differ.*; again: .* --seed 1 --chapter 7"):
        soak.soak(50, seed=1, first=7, folder=tmp_path)


def test_what_extra_buffers_cost(tiny_files, capsys):
    """A line for each number of rows, both ways in it."""
    script("measure_extra_buffers").main([str(tiny_files.wide), "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["rows", "1", "2", "4", "8", "16", "32"]
    assert all(len(line.split()) == 7 for line in lines[1:])


def test_the_scheduler_and_the_best_fixed_depth():
    """One rig of `measure_heads`: the depth matters there, and the scheduler is not below the best
    one that is chosen afterwards. Costs are given, so no clock decides.
    """
    module = script("measure_heads")
    given = FixedCosts(1.0 + 0.1 * np.arange(65), 0.1 * np.arange(1, 65))
    given.rereads, given.catch_up_seconds = False, lambda tokens: 0.01 * tokens * (tokens > 2)
    with ExitStack() as stack:
        rig = module.Rig(stack, "MTP head", 0.7, layers=2, texts=3, tokens=60)
        costs = module.Measured(given)
        (cell,) = rig.cells([costs])
        speeds = [costs.over_plain(rig.rounds(costs, depth=depth)) for depth in (1, 6)]
        accepted = [round.accepted for round in rig.rounds(costs, depth=1)]
    assert cell.depth in (2, 3, 4)
    assert cell.fixed > 1.05 * max(speeds) > 1.2
    assert 0.6 < np.mean(accepted) < 0.8
    assert cell.warm >= 0.98 * cell.fixed
    assert cell.cold >= 0.95 * cell.fixed
