"""Collect the data: the target's conversations, with its layer inputs and logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from time import perf_counter

from dspark_gguf.engine.pair import Pair
from dspark_gguf.train.generate import LENGTH, generate
from dspark_gguf.train.plan import DATA, Job
from dspark_gguf.train.prompts import Source
from dspark_gguf.train.record import Teacher, record
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.work import Recording, Work


class Collector:
    """Has the target write and reread conversations until time, disk or `max_tokens` runs out.

    Each conversation is recorded as soon as it is finished, so that the two steps share the time.
    """

    def __init__(
        self,
        pair: Pair,
        work: Work,
        recording: Recording,
        job: Job,
        shape: Shape,
        show: Callable[[float, str], object],
    ) -> None:
        self._pair, self._work, self._recording, self._show = pair, work, recording, show
        self._layers, self._job, self._most = shape.target_layers, job, job.room(shape)
        self._last = perf_counter()

    def run(self, source: Source) -> None:
        """Record what an earlier run left unrecorded, then generate and record more."""
        with ExitStack() as stack:
            teacher = None
            if self._job.disk:
                n_ctx = min(LENGTH, self._pair.target_cache.n_ctx)
                teacher = Teacher(self._pair.target, self._layers, n_ctx, self._pair.interrupt)
                stack.callback(teacher.close)
            self._record(teacher)
            if self._done >= 1.0:
                return
            with closing(generate(self._pair, self._work, source, self._job.seed)) as made:
                for _ in made:
                    self._count("generating")
                    self._record(teacher)
                    if self._done >= 1.0:
                        break
            self._record(teacher)  # the unfinished ones

    @property
    def _done(self) -> float:
        """Progress: 1 is done, and it may end a little beyond."""
        time = self._work.spent_on_data / (DATA * self._job.seconds)
        return max(time, self._work.tokens / self._most)

    def _record(self, teacher: Teacher | None) -> None:
        if teacher is not None:
            for _ in record(teacher, self._work, self._recording, self._most):
                self._count("recording")

    def _count(self, step: str) -> None:
        now = perf_counter()
        self._work.spend(step, now - self._last)
        self._last = now
        self._show(self._done, f"{self._work.tokens:,} tokens")
