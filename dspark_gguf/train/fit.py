"""Train the network until time is up or more no longer helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dspark_gguf.paths import replacing
from dspark_gguf.train.batches import Batch, Batches
from dspark_gguf.train.evaluate import Walk, evaluate
from dspark_gguf.train.network import Network
from dspark_gguf.train.recipe import Recipe

#: Times as much as before that is more to learn, and not a few seconds less for the conversations.
_MORE = 1.02


class Fit:
    """A network being trained, which can be stopped at any step, saved, and gone on with."""

    def __init__(self, network: Network, recipe: Recipe, device: torch.device) -> None:
        self.network, self.recipe, self.device = network.to(device), recipe, device
        network.dropout = recipe.dropout
        heads = [network.markov_in, network.markov_out]
        rest = [p for p in network.parameters() if all(p is not head for head in heads)]
        self._optimizer = torch.optim.AdamW(
            [{"params": rest, "peak": recipe.rate}, {"params": heads, "peak": recipe.head_rate}],
            lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.01,
        )  # fmt: skip
        self.step, self.seen, self.seconds = 0, 0, 0.0
        #: On the clock, when cooling began, and how long all of it should take; None: not yet.
        self._cooling_from: float | None = None
        self._whole = 0.0
        self.autocast = autocast(device)
        weights = recipe.decay ** torch.arange(network.shape.block, device=device)
        self._weights = weights

    def run(
        self, batches: Batches, train: Sequence[int], held: Sequence[int], seconds: float
    ) -> Iterator[tuple[float, Walk | None]]:
        """Train for so many seconds, those of earlier runs included.

        Yields, after each step, the share that is over and, now and then, what was found.
        """
        recipe, best, waited = self.recipe, 0.0, 0
        whole = max(seconds if recipe.steps is None else float(recipe.steps), 1e-9)
        if whole > _MORE * self._whole:  # it is asked to go on
            self._cooling_from = None
        self._whole = whole
        rng = np.random.default_rng(recipe.seed + self.step)
        torch.manual_seed(recipe.seed + self.step)
        queue, shown = self._queue(train, rng), (self._clock(), self.step)
        while (done := self._done()) < 1.0:
            began = perf_counter()
            self._learn(batches.drawn(next(queue), recipe.each, rng), done)
            self.seconds += perf_counter() - began  # what the caller does meanwhile is not its own
            if not held or not self._is_due(*shown):
                yield done, None
                continue
            began = perf_counter()
            found = evaluate(self.network, batches, held, self.autocast)
            self.seconds += perf_counter() - began
            shown = self._clock(), self.step
            gained = found.tokens_a_pass > 1.005 * best
            best, waited = max(best, found.tokens_a_pass), 0 if gained else waited + 1
            if waited >= recipe.patience and self._cooling_from is None:
                self._cooling_from = self._clock()
            yield done, found

    def save(self, path: Path) -> None:
        """Everything that a later run needs, whole or not at all; an `OSError` if it cannot be."""
        network = self.network
        state = {
            "network": network.state_dict(), "optimizer": self._optimizer.state_dict(),
            "step": self.step, "seen": self.seen, "seconds": self.seconds,
            "known": network.known, "mask": network.mask,
            "cooling_from": self._cooling_from, "whole": self._whole,
        }  # fmt: skip
        with replacing(path) as part:
            try:
                torch.save(state, part)
            except RuntimeError:  # torch's word for a full disk
                raise OSError(errno.EIO, "torch could not write all of it", str(path)) from None

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self._cooling_from, self._whole = state.get("cooling_from"), state.get("whole", 0.0)

    def _is_due(self, clock: float, step: int) -> bool:
        """Whether to evaluate again, after the last time."""
        apart = self.recipe.apart if self.recipe.steps is None else 0
        return self._clock() - clock >= self.recipe.every and self.step - step >= apart

    def _clock(self) -> float:
        return self.seconds if self.recipe.steps is None else float(self.step)

    def _done(self) -> float:
        """Share that is over; once more no longer helps, what is left is only the cooling."""
        done = self._clock() / self._whole
        if self._cooling_from is None:
            return done
        # It takes as long, against what came before, as it would have at the end.
        ratio = self.recipe.cooling / (1 - self.recipe.cooling)
        part = (self._clock() - self._cooling_from) / max(1e-9, ratio * self._cooling_from)
        return max(done, 1 - self.recipe.cooling + self.recipe.cooling * part)

    def _queue(self, train: Sequence[int], rng: np.random.Generator) -> Iterator[list[int]]:
        """Conversations for each step, all of them before any comes again."""
        count = max(1, self.recipe.anchors // self.recipe.each)
        order: list[int] = []
        while True:
            while len(order) < count:
                order += rng.permutation(train).tolist()
            yield order[:count]
            del order[:count]

    def _learn(self, batch: Batch, done: float) -> None:
        recipe, network = self.recipe, self.network
        cooling = min(1.0, max(0.0, (1 - done) / recipe.cooling))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (self.step + 1) / recipe.warm) * cooling
        with self.autocast():
            logits = network.logits(network(batch.anchors), batch.before)
        weights = batch.valid * self._weights
        late = 1.0 if recipe.refines else min(1.0, max(0.0, (done - 0.1) / 0.5))
        loss = distance(logits.float(), batch, weights / weights.sum(), late)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step, self.seen = self.step + 1, self.seen + int(batch.valid[..., 0].sum())


def distance(logits: Tensor, batch: Batch, weights: Tensor, late: float) -> Tensor:
    """Of the draft from the target: first cross entropy, in the end 0.1 of it and 0.9 of L1.

    The L1 distance between two distributions is twice the share of tokens that rejection sampling
    would reject (DSpark's loss). All that is not among the target's likeliest tokens is one rest.
    """
    known = batch.probabilities > 0
    logs = logits.gather(-1, batch.labels) - logits.logsumexp(-1, keepdim=True)
    cross = -(batch.probabilities * logs).sum(-1)
    own = torch.where(known, logs.exp(), 0.0)
    far = (own - batch.probabilities).abs().sum(-1) + 1 - own.sum(-1)
    return ((1 - 0.9 * late) * cross + 0.9 * late * far).mul(weights).sum()


def autocast(device: torch.device) -> Any:
    """Begins a block of bfloat16 matrices, where the device is fast at them."""
    fast = device.type == "cuda" or (device.type == "cpu" and _has_amx())
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=fast)


def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())


def best_device() -> torch.device:
    """A GPU if torch has one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def feature_scale(samples: Sequence[np.ndarray]) -> Tensor:
    """Size of each layer's inputs: the median over tokens, since the first ones are huge."""
    squares = (each[1:].astype(np.float32) ** 2 for each in samples)
    sizes = np.concatenate([np.sqrt(each.mean(2)) for each in squares])
    return torch.from_numpy(np.maximum(np.median(sizes, 0), 1e-6))
