"""Training batches: anchors in conversations, and the target's distribution at each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dspark_gguf.train.network import Anchors
from dspark_gguf.train.work import Conversation, Recorded


class Records(Protocol):
    """Recorded conversations by index."""

    def __getitem__(self, k: int) -> Recorded: ...


class Batch(NamedTuple):
    """Blocks from some conversations, with the target's distribution at each row.

    `before` [c, a, block]: the real token before each row's guess. `labels` [c, a, block, 16]: the
    likeliest tokens, as indices into the draft's vocabulary, with their `probabilities`. `best`
    [c, a, block]: the id of the likeliest token. `valid` [c, a, block]: which rows count.
    """

    anchors: Anchors
    before: Tensor
    labels: Tensor
    probabilities: Tensor
    best: Tensor
    valid: Tensor


class Batches:
    """Makes batches on a device. `known` holds the ids in the draft's vocabulary."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        records: Records,
        block: int,
        known: Tensor,
        n_vocab: int,
        device: torch.device,
    ) -> None:
        self.conversations, self.records = conversations, records
        self._block, self._device = block, device
        self._places = np.full(n_vocab, -1)
        self._places[known.cpu().numpy()] = np.arange(len(known))

    def served(self, k: int) -> Batch:
        """Every anchor of an answer in order, starting with the last token of the prompt."""
        talk = self.conversations[k]
        anchors = np.arange(max(1, len(talk.prompt) - 1), len(talk.tokens))
        return self._make([k], [anchors])

    def drawn(self, ks: Sequence[int], most: int, rng: np.random.Generator) -> Batch:
        """At most `most` random anchors of each conversation, new ones at every call."""
        drawn = []
        for k in ks:
            talk = self.conversations[k]
            places = np.arange(max(1, talk.start - 1), len(talk.tokens))
            if len(places) > most:
                places = np.sort(rng.choice(places, most, replace=False))
            drawn.append(places)
        return self._make(ks, drawn)

    def _make(self, ks: Sequence[int], anchors: Sequence[np.ndarray]) -> Batch:
        records = [self.records[k] for k in ks]
        c, a = len(ks), max(map(len, anchors))
        # No row attends to anything after the last anchor.
        n = max(int(places[-1]) for places in anchors)
        one = records[0]
        features = np.zeros((c, n, *one.features.shape[1:]), np.float16)
        places, tokens = np.zeros((c, a), np.int64), np.zeros((c, a), np.int64)
        before = np.zeros((c, a, self._block), np.int64)
        valid = np.zeros((c, a, self._block), bool)
        ids = np.zeros((c, a, self._block, one.ids.shape[1]), np.int64)
        chances = np.zeros(ids.shape, np.float32)
        for j, (k, record, at) in enumerate(zip(ks, records, anchors, strict=True)):
            text, m = np.array(self.conversations[k].tokens), len(at)
            length = min(n, len(text))
            features[j, :length] = record.features[:length]
            rows = at[:, None] + np.arange(self._block)
            valid[j, :m] = rows < len(text)
            rows = np.minimum(rows, len(text) - 1)
            places[j, :m], tokens[j, :m], before[j, :m] = at, text[at], text[rows]
            ids[j, :m] = record.ids[rows]
            chances[j, :m] = np.exp(record.logs[rows].astype(np.float32))
        labels = self._places[ids]
        chances[labels < 0] = 0.0
        arrays = places, tokens, before, labels.clip(0), chances, ids[..., 0], valid
        moved = [torch.from_numpy(each).to(self._device) for each in (features, *arrays)]
        return Batch(Anchors(*moved[:3]), *moved[3:])
