"""Train the network until time is up or it stops improving."""

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

#: A budget larger by this factor asks for more training; a smaller change is only the few seconds
#: that conversations took less.
_MORE = 1.02


class Fit:
    """A network being trained, which can be stopped at any step, saved and resumed."""

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
        #: When cooldown began (None: not yet) and the whole budget, in seconds or steps.
        self._cooling_from: float | None = None
        self._whole = 0.0
        self.autocast = autocast(device)
        weights = recipe.decay ** torch.arange(network.shape.block, device=device)
        self._weights = weights

    def run(
        self, batches: Batches, train: Sequence[int], held: Sequence[int], seconds: float
    ) -> Iterator[tuple[float, Walk | None]]:
        """Train for so many seconds, including those of earlier runs.

        Yields the progress after each step and, now and then, an evaluation.
        """
        recipe, best, waited = self.recipe, 0.0, 0
        whole = max(seconds if recipe.steps is None else float(recipe.steps), 1e-9)
        if whole > _MORE * self._whole:  # more training is asked for
            self._cooling_from = None
        self._whole = whole
        rng = np.random.default_rng(recipe.seed + self.step)
        torch.manual_seed(recipe.seed + self.step)
        queue, shown = self._queue(train, rng), (self._clock(), self.step)
        while (done := self._done()) < 1.0:
            began = perf_counter()
            self.learn(batches.drawn(next(queue), recipe.each, rng), done)
            self.seconds += perf_counter() - began  # without what the caller does between steps
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
        """Write everything that a later run needs, atomically; an `OSError` if that fails."""
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
            except RuntimeError:  # what torch raises for a full disk
                raise OSError(errno.EIO, "torch could not write all of it", str(path)) from None

    def load(self, state: dict[str, Any]) -> None:
        """Resume from what `save` wrote."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self._cooling_from, self._whole = state.get("cooling_from"), state.get("whole", 0.0)

    def _is_due(self, clock: float, step: int) -> bool:
        """Whether to evaluate again, given when that was last done."""
        apart = self.recipe.apart if self.recipe.steps is None else 0
        return self._clock() - clock >= self.recipe.every and self.step - step >= apart

    def _clock(self) -> float:
        return self.seconds if self.recipe.steps is None else float(self.step)

    def _done(self) -> float:
        """Progress, 0 to 1; once it stops improving, only the cooldown is left."""
        done = self._clock() / self._whole
        if self._cooling_from is None:
            return done
        # The cooldown keeps its proportion to the training before it.
        ratio = self.recipe.cooling / (1 - self.recipe.cooling)
        part = (self._clock() - self._cooling_from) / max(1e-9, ratio * self._cooling_from)
        return max(done, 1 - self.recipe.cooling + self.recipe.cooling * part)

    def _queue(self, train: Sequence[int], rng: np.random.Generator) -> Iterator[list[int]]:
        """Conversations for each step; none repeats before all were used."""
        count = max(1, self.recipe.anchors // self.recipe.each)
        order: list[int] = []
        while True:
            while len(order) < count:
                order += rng.permutation(train).tolist()
            yield order[:count]
            del order[:count]

    def learn(self, batch: Batch, done: float) -> None:
        """One step; `done` is the progress, 0 to 1."""
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
    """Loss of the draft against the target: cross entropy first, at the end 0.1 CE + 0.9 L1.

    The L1 distance between two distributions is twice the share of tokens that rejection sampling
    would reject (DSpark's loss). Tokens outside the target's likeliest count as one.
    """
    known = batch.probabilities > 0
    logs = logits.gather(-1, batch.labels) - logits.logsumexp(-1, keepdim=True)
    cross = -(batch.probabilities * logs).sum(-1)
    own = torch.where(known, logs.exp(), 0.0)
    far = (own - batch.probabilities).abs().sum(-1) + 1 - own.sum(-1)
    return ((1 - 0.9 * late) * cross + 0.9 * late * far).mul(weights).sum()


def autocast(device: torch.device) -> Any:
    """Makes contexts that compute in bfloat16, if the device is fast at it."""
    fast = device.type == "cuda" or (device.type == "cpu" and _has_amx())
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=fast)


def _has_amx() -> bool:
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked and asked())


def best_device() -> torch.device:
    """A GPU if torch can use one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def feature_scale(samples: Sequence[np.ndarray]) -> Tensor:
    """RMS of each layer's inputs: the median over tokens, since the first ones are huge."""
    squares = (each[1:].astype(np.float32) ** 2 for each in samples)
    sizes = np.concatenate([np.sqrt(each.mean(2)) for each in squares])
    return torch.from_numpy(np.maximum(np.median(sizes, 0), 1e-6))
