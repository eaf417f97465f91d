"""Calibration figures against their definitions, and temperature scaling."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from dspark_gguf.cli import main
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.chains import Chains, save_chains
from dspark_gguf.measure.reliability import (
    Reliability,
    auc,
    bins,
    brier_score,
    calibration_error,
    fit_temperatures,
    survivals,
)


def test_figures_by_hand():
    """Four chances in two bins: error |0.1 - 0.5| / 2 + |0.9 - 1| / 2."""
    chances = np.array([0.1, 0.1, 0.9, 0.9])
    outcomes = np.array([False, True, True, True])
    assert calibration_error(chances, outcomes) == pytest.approx(0.4 / 2 + 0.1 / 2)
    assert brier_score(chances, outcomes) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)
    assert auc(chances, outcomes) == pytest.approx((0.5 + 1 + 1) / 3)
    assert auc(np.array([0.1, 0.4, 0.3, 0.8]), np.array([False, False, True, True])) == 0.75
    assert [share for _, share, _ in bins(chances, outcomes)] == [0.5, 1.0]
    assert np.isnan(auc(chances, np.ones(4, bool)))


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed):
    """Against all pairs, ties counted half."""
    rng = np.random.default_rng(seed)
    chances, outcomes = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.5
    pairs = chances[outcomes][:, None] - chances[~outcomes][None, :]
    wanted = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert auc(chances, outcomes) == pytest.approx(wanted)


def overconfident(n=4000, depth=3, seed=0):
    """Logits three times as large as they should be."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0.5, 1.0, (n, depth))
    alive = np.logical_and.accumulate(rng.random((n, depth)) < 1 / (1 + np.exp(-odds)), axis=1)
    return 1 / (1 + np.exp(-3 * odds)), alive


def test_the_temperature_is_found():
    """Three at every position, up to the grid and chance; the error nearly vanishes."""
    confidence, survived = overconfident()
    temperatures = fit_temperatures(confidence, survived)
    assert temperatures == pytest.approx([3, 3, 3], rel=0.25)
    before, after = survivals(confidence), survivals(confidence, temperatures)
    for k in range(3):
        assert calibration_error(after[:, k], survived[:, k]) < 0.03
        assert calibration_error(before[:, k], survived[:, k]) > 0.05


def test_measured_on_texts_it_was_not_fitted_to(tmp_path):
    """Every other text; the command shows each position, and draws."""
    texts = []
    for seed in range(4):
        confidence, survived = overconfident(500, seed=seed)
        texts.append(Chains("x", confidence.astype(np.float32), survived))
    found = Reliability.of(texts)
    assert len(found.survived) == 1000
    with pytest.raises(UsageError, match="two texts"):
        Reliability.of(texts[:1])
    none = np.zeros((5, 0), np.float32)
    with pytest.raises(UsageError, match="nothing is drafted"):  # recorded without a draft model
        Reliability.of([Chains("x", none, none.astype(bool))] * 2)
    for wrong in (-0.1, 1.1):  # in either half
        odd = Chains("x", np.full((5, 3), wrong, np.float32), np.zeros((5, 3), bool))
        for some in ([odd, texts[0]], [texts[0], odd]):
            with pytest.raises(UsageError, match="not probabilities"):
                Reliability.of(some)
    save_chains(tmp_path / "c.npz", texts)
    words = ["calibrate", "--chains", str(tmp_path / "c.npz")]
    result = CliRunner().invoke(main, [*words, "--plot", str(tmp_path / "d.svg")])
    assert result.exit_code == 0, result.output
    assert "Brier" in result.stdout
    drawn = ElementTree.parse(tmp_path / "d.svg").getroot()
    assert {"before", "after", "predicted", "accepted"} <= set(drawn.itertext())
    assert "var(" not in (tmp_path / "d.svg").read_text("utf-8")  # few programs know variables
    for name in ("d.png", "d.txt", "d"):
        refused = CliRunner().invoke(main, [*words, "--plot", name])
        assert (refused.exit_code, name in refused.stderr) == (2, True)
