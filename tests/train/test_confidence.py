"""A confidence head is written only where it ranks better than the draft's own probability."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from dspark_gguf.train import confidence
from dspark_gguf.train.confidence import fit_confidence


class Network:
    """What the fit needs of a network."""

    def __init__(self):
        self.confidence = torch.zeros(5)


def rows(knows):
    """1,000 rows of 20 conversations; the inputs or the probability tell the right ones."""
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(1000, 4, generator=draw)
    signal = 2 * inputs[:, 1] - inputs[:, 2]
    noise = torch.randn(1000, generator=draw)
    right = ((signal if knows == "inputs" else noise) > 0).float()
    own = torch.sigmoid(noise)
    return inputs, own, right, torch.arange(1000) // 50


@pytest.mark.parametrize("knows", ["inputs", "probability"])
def test_the_better_one_is_kept(knows, monkeypatch):
    """Judged on conversations that it was not fitted on."""
    monkeypatch.setattr(confidence, "_rows", lambda *_: rows(knows))
    network = Network()
    found = fit_confidence(network, None, range(20))
    assert bool(network.confidence.any()) == (knows == "inputs")
    assert (found.head > 0.95) == (knows == "inputs")
    assert (found.own > 0.95) == (knows == "probability")
    assert found.rows == 1000
    assert all(0 <= said <= 1 and 0 <= share <= 1 for said, share in found.reliability)


def test_too_little_decides_nothing(monkeypatch):
    """Few rows, or no wrong one."""
    few = tuple(each[:100] for each in rows("inputs"))
    monkeypatch.setattr(confidence, "_rows", lambda *_: few)
    network = Network()
    assert fit_confidence(network, None, range(20)) is None
    inputs, own, right, talk = rows("inputs")
    monkeypatch.setattr(confidence, "_rows", lambda *_: (inputs, own, right * 0 + 1, talk))
    assert fit_confidence(network, None, range(20)) is None
    assert fit_confidence(network, None, range(3)) is None
    assert not network.confidence.any()
