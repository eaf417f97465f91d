"""The confidence head: fitted last, on held-out rows, and often left out.

A head trained together with the rest sees rows that the draft has memorised, and ranks badly. It
must beat the draft's own top probability on held-out rows that were reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from dspark_gguf.measure.reliability import auc
from dspark_gguf.train.batches import Batches
from dspark_gguf.train.network import Network

#: Held-out rows needed to decide.
_LEAST = 400
_DECAY = 0.3


class Ranking(NamedTuple):
    """How well the head and the draft's own top probability rank: areas under the ROC curve.

    `reliability` has, for each tenth, the mean predicted probability and the share that was right.
    """

    head: float
    own: float
    rows: int
    reliability: list[tuple[float, float]]


@torch.no_grad()
def _rows(network: Network, batches: Batches, ks: Sequence[int]) -> tuple[Tensor, ...]:
    """For each reached row: the head's inputs, top probability, whether right, conversation."""
    network.eval()
    inputs, own, right, talk = [], [], [], []
    for number, k in enumerate(ks):
        batch = batches.served(k)
        hidden = network(batch.anchors).float()
        ids, sure = network.guess(hidden, batch.anchors.tokens)
        before = torch.cat([batch.anchors.tokens[..., None], ids[..., :-1]], -1)
        good = (ids == batch.best) & batch.valid
        run = torch.cat([torch.ones_like(good[..., :1]), good[..., :-1].cumprod(-1).bool()], -1)
        reached = run & batch.valid
        inputs.append(torch.cat([hidden, network.markov_in[before]], -1)[reached].cpu())
        own.append(sure[reached].cpu())
        right.append(good[reached].float().cpu())
        talk.append(torch.full((len(own[-1]),), number))
    return tuple(torch.cat(each) for each in (inputs, own, right, talk))


def fit_confidence(network: Network, batches: Batches, ks: Sequence[int]) -> Ranking | None:
    """Fit on half of the conversations; keep a head that ranks better on the other half.

    None if there are too few rows to decide.
    """
    network.confidence.zero_()
    if len(ks) < 4:
        return None
    inputs, own, right, talk = _rows(network, batches, ks)
    odd = talk % 2 == 1
    if len(own) < _LEAST or not 0 < right[odd].mean() < 1:
        return None
    weights = _logistic(inputs[~odd], right[~odd])
    score = inputs[odd] @ weights[:-1] + weights[-1]
    reliability = []
    for k in range(10):
        here = (own * 10).long().clamp(max=9) == k
        if here.any():
            reliability.append((float(own[here].mean()), float(right[here].mean())))
    head, draft = (auc(each.numpy(), right[odd].numpy() > 0) for each in (score, own[odd]))
    found = Ranking(head, draft, len(own), reliability)
    if found.head > found.own:
        network.confidence.copy_(_logistic(inputs, right))
    return found


def _logistic(inputs: Tensor, right: Tensor) -> Tensor:
    """Weights and bias of a ridge regression on standardised inputs."""
    mean, size = inputs.mean(0), inputs.std(0) + 1e-3
    scaled = (inputs - mean) / size
    weights = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = scaled @ weights[:-1] + weights[-1]
        value = F.binary_cross_entropy_with_logits(logits, right)
        value = value + _DECAY * weights[:-1].pow(2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = weights.detach().clone()
    found[:-1] /= size
    found[-1] -= (found[:-1] * mean).sum()
    return found
