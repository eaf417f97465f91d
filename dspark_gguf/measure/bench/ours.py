"""The decoders of this package as programs of a bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dspark_gguf.config import Limits, Sampling
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled
from dspark_gguf.measure.bench.turns import Task
from dspark_gguf.measure.bench.ways import Way
from dspark_gguf.tally import Answer, Tally


@dataclass
class Ours:
    """One way: a decoder for each temperature.

    Attributes:
        name: of the way.
        decoder_at: makes the decoder of a temperature.
        limits: of the answers, but for the number of tokens.

    """

    name: str
    decoder_at: Callable[[float], Decoder]
    limits: Limits = field(default_factory=Limits)
    _decoders: dict[float, Decoder] = field(default_factory=dict)

    def answer(self, task: Task) -> Tally:
        """Answer from empty caches.

        Without a seed in the settings the turn's number is the seed: the next run draws the same.
        """
        if task.temperature not in self._decoders:
            self._decoders[task.temperature] = self.decoder_at(task.temperature)
        decoder = self._decoders[task.temperature]
        decoder.reset()
        limits = self.limits.model_copy(update={"max_tokens": task.most})
        rng = np.random.default_rng(task.turn) if decoder.seed is None else None
        answer = Answer()
        for round in decoder.generate(task.tokens, limits, rng):
            answer.add(round)
        if answer.finish_reason == "cancelled":
            raise Cancelled
        return answer.tally


def ours(pair: Pair, ways: Sequence[Way], sampling: Sampling, limits: Limits) -> list[Ours]:
    """A program for each way; no way knows what another one learns.

    Args:
        pair: loaded, and measured by ``pair.learned``.
        ways: what to compare.
        sampling: how tokens are drawn, but for the temperature.
        limits: see `Ours`.

    """
    return [Ours(way.name, _maker(pair, way, sampling), limits) for way in ways]


def _maker(pair: Pair, way: Way, sampling: Sampling) -> Callable[[float], Decoder]:
    learned = pair.copy_costs()

    def decoder_at(temperature: float) -> Decoder:
        drawn = sampling.model_copy(update={"temperature": temperature})
        return Decoder.for_pair(pair, drawn, way.speculation, learned)

    return decoder_at
