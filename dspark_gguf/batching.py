"""Many conversations in one pass: continuous batching with speculative decoding.

Every pass of the target serves all running conversations: the verified rows of each, and a piece of
at most one new prompt. ``schedule/shared.py`` decides how many draft tokens that pays for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from dspark_gguf.config import MOST_ROWS, Limits, Sampling, Speculation
from dspark_gguf.cost import Costs
from dspark_gguf.decoder import Decoder, Generation, require_room
from dspark_gguf.ending import Ending
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Rows
from dspark_gguf.engine.sequence import decode_together
from dspark_gguf.engine.template import Prompt
from dspark_gguf.errors import CacheFullError, Cancelled, DSparkError
from dspark_gguf.learned import Learned
from dspark_gguf.noise import Draws, Noise
from dspark_gguf.places import Place, Places
from dspark_gguf.records import Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import SharedCosts, Source, StoppingRule, make_stopping_rule
from dspark_gguf.schedule.pieces import Pieces
from dspark_gguf.tally import Answer
from dspark_gguf.together import draft_together, verify_together

#: A prompt with more unread tokens is read ahead, piece by piece.
_FEW = 16
#: Tokens of an answer that must fit the cells before it begins, if it may have as many.
_AHEAD = 256
#: Conversations are added as long as this much more throughput is expected.
_PAYS = 1.02


@dataclass(eq=False)
class Request:
    """A prompt to be answered, and its answer so far.

    Attributes:
        key: what the caller knows it by.
        answer: all rounds so far, put together; its `finish_reason` says why it has ended.
        error: why it could not be answered or finished, if so.
        is_over: whether its last round was handed out, or comes with the next step.

    """

    key: Any
    prompt: Sequence[int]
    sampling: Sampling
    limits: Limits
    draws: Draws
    answer: Answer = field(default_factory=Answer)
    error: DSparkError | None = None
    is_over: bool = False
    run: Generation | None = None  # once it has a place
    place: Place | None = None
    speculation: Speculation | None = None  # unless as all others
    #: Called with the rows of a pass and the tokens that were drawn from them, in order.
    watch: Callable[[Rows, Sequence[int]], object] | None = None


class Batcher:
    """Answers prompts together, on a pair that was opened for several conversations.

    ::

        with load_pair(conversations=8) as pair:
            batcher = Batcher(pair)
            requests = [batcher.submit(pair.template.encode(each, None)) for each in prompts]
            for request, round in batcher:
                ...

    Answers are the same as alone, but for the rounding of the machine's arithmetic. The context is
    shared: where it is full, requests wait, or are interrupted and read again later.

    Args:
        pair: from ``load_pair``.
        speculation: when to draft and what to accept, for all.
        parallel: most conversations in a pass; default: as many as pay.
        patience: seconds that running answers wait for a piece of a new prompt.
        learned: to use and to add to, in the place of what the pair has learned.

    """

    def __init__(
        self,
        pair: Pair,
        speculation: Speculation | None = None,
        parallel: int | None = None,
        patience: float = 0.25,
        learned: Learned | None = None,
    ) -> None:
        self.pair, self.speculation = pair, speculation or Speculation()
        if self.speculation.mode != "off":
            learned = pair.learned(self.speculation, into=learned)
        self._learned = learned or Learned()
        self._whole = whole = self._learned.costs
        self._places, count = Places(pair), len(pair.target_caches)
        self._context = pair.target_cache.context
        draft = pair.caches.get("draft")
        self._costs = SharedCosts(whole, joint=draft is None or draft.joins)
        self._pieces = Pieces(whole, patience, self._context.n_batch)
        self._most_rows = min(MOST_ROWS, self._context.n_batch)
        #: Whether its memory makes several passes of one over drafts of different lengths.
        self._is_split = pair.target_cache.rollback in ("snapshots", "replay")
        self._rules: dict[tuple[int, ...], StoppingRule] = {}
        self.parallel = min(parallel or self._paying(count), count)
        self._few = max(1, min(_FEW, self._context.n_batch // (2 * count)))
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._ready: list[tuple[Request, Round]] = []

    @property
    def running(self) -> int:
        """Conversations that share the next pass."""
        return len(self._running)

    @property
    def plain_speed(self) -> float:
        """Tokens a second that plain decoding of one conversation would have; 0: not known."""
        seconds = self._whole.target_seconds[0] if self._whole.measured_rows else 0.0
        return float(1.0 / seconds) if seconds else 0.0

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        *,
        key: Any = None,
        draws: Draws | None = None,
    ) -> Request:
        """Queue a prompt: text, messages or token ids; it is answered by `step`.

        Raises:
            UsageError: an empty prompt, or settings that this model cannot honour.
            ResourceError: a prompt that leaves no room for an answer.

        """
        sampling, limits = sampling or Sampling(), limits or Limits()
        prompt = self.pair.template.ids(prompt)
        require_room(prompt, self.pair.target_cache.n_ctx)
        Sampler.of(sampling, self.pair.vocabulary)
        draws = Noise.of(sampling.seed) if draws is None else draws
        draws.move(len(prompt))
        request = Request(key, prompt, sampling, limits, draws)
        self._waiting.append(request)
        return request

    def clear(self) -> None:
        """Forget what finished answers left in the caches."""
        while self._places.give_up_oldest():
            pass

    def cancel(self, request: Request) -> None:
        """End a request; its last round comes with the next `step`."""
        if not request.is_over:
            last = Round((), finish_reason="cancelled")
            self._end(request, request.run.end("cancelled") if request.run else last)

    def __iter__(self) -> Iterator[tuple[Request, Round]]:
        """All rounds until nothing is left to do, also of what is submitted meanwhile."""
        while self._waiting or self._running or self._ready:
            yield from self.step()

    def step(self) -> list[tuple[Request, Round]]:
        """One pass: a round of every conversation that the pass brought tokens, or the end.

        Raises:
            Cancelled: ``pair.interrupt`` is set.
            ResourceError: memory is short.
            EngineError: llama.cpp failed.

        """
        if self.pair.interrupt.is_set():
            raise Cancelled
        self._admit()
        while self._running:
            try:
                self._pass()
                break
            except CacheFullError:
                self._abandon()
                self._make_room()
            except BaseException:
                self._abandon()
                raise
        rounds, self._ready = self._ready, []
        for request, round in rounds:
            request.answer.add(round)
        return rounds

    def _admit(self) -> None:
        """Begin, or go on with, the oldest waiting requests that have room."""
        while self._waiting and len(self._running) < self.parallel:
            request = self._waiting[0]
            if self._running and self._needed(request) > self._context.n_ctx - sum(
                map(self._needed, self._running)
            ):
                return
            if request.run is None and not self._begin(request):
                return
            if not request.is_over:
                self._running.append(self._waiting.popleft())

    def _begin(self, request: Request) -> bool:
        """Give a request a place; False: all are taken."""
        place = self._places.take(request.prompt)
        if place is None:
            return False
        request.place = place
        try:
            decoder = Decoder.for_pair(
                self.pair,
                request.sampling,
                request.speculation or self.speculation,
                self._learned,
                conversation=place.number,
                schedule=self._rule,
            )
            ending = Ending(request.limits, self.pair.vocabulary)
            request.run = decoder.start(request.prompt, ending, request.draws)
        except DSparkError as error:
            request.error = error
            self._end(request, Round(()))
        else:
            if not request.run.room:
                self._end(request, request.run.end("length"))
        return True

    def _rule(
        self,
        speculation: Speculation,
        costs: Costs | None = None,
        steps: Source | None = None,
        guesses: Source | None = None,
    ) -> StoppingRule:
        """One rule for all requests that learn the same: eight conversations teach it fast."""
        key = tuple(id(each.calibration) for each in (steps, guesses) if each)
        if costs is None or key not in self._rules:
            shared = None if costs is None else self._costs
            self._rules[key] = make_stopping_rule(speculation, shared, steps, guesses)
        return self._rules[key]

    def _needed(self, request: Request) -> int:
        """Cells that a request needs, with a good part of its answer."""
        if request.run is None:
            most = request.limits.max_tokens
            return len(request.prompt) + (_AHEAD if most is None else min(most, _AHEAD))
        return len(request.run.tokens) + min(request.run.room, _AHEAD)

    def _end(self, request: Request, round: Round | None = None) -> None:
        """Its place is free again; what it holds stays for the next prompt that begins like it."""
        if round is not None:
            self._ready.append((request, round))
        request.is_over = True
        self._waiting = deque(each for each in self._waiting if each is not request)
        self._running = [each for each in self._running if each is not request]
        if request.place is not None:
            self._places.leave(request.place)
            if request.error is not None:
                request.place.clear()
        self.pair.after_answer(len(request.answer.tokens))

    def _abandon(self) -> None:
        """Forget the drafts of a pass that was not done."""
        for request in self._running:
            _run(request).abandon()

    def _make_room(self) -> None:
        """Free cells: of the oldest finished answer, else of the newest running one."""
        if self._places.give_up_oldest():
            return
        newest = self._running[-1]
        if len(self._running) == 1:
            self._end(newest, _run(newest).end("context"))
            return
        self._running.pop()
        self._waiting.appendleft(newest)
        if newest.place is not None:
            newest.place.clear()

    def _paying(self, most: int) -> int:
        """The smallest number of conversations that brings nearly all the throughput there is."""
        if not self._whole.measured_rows:
            return most
        counts = np.arange(1, most + 1)
        throughput = counts / self._whole.target_seconds[:most]
        return int(np.argmax(throughput * _PAYS >= throughput.max())) + 1

    def _pass(self) -> None:
        answering = [each for each in self._running if _run(each).unread <= self._few]
        behind = [each for each in self._running if _run(each).unread > self._few]
        piece = self._pieces.size(len(answering))
        if behind and _run(behind[0]).unread <= piece:
            answering.append(behind.pop(0))
        self._costs.set_count(max(1, len(answering)))
        runs = [_run(each) for each in answering]
        drafts = draft_together(runs, self._few, self._costs)
        joint = self.speculation.acceptance != "rejection"
        passes = verify_together(runs, drafts, self._costs, self._most_rows, joint, self._is_split)
        started = perf_counter()
        n_rows = sum(each.n_rows for each in passes)
        plain = all(each.n_rows == len(each.tokens) for each in passes)
        if behind:
            room = self._context.n_batch - sum(len(each.tokens) for each in passes)
            passes.append(_run(behind[0]).read_ahead(min(piece, room)))
        rows = decode_together(passes)
        for request, own in zip(answering, rows, strict=False):
            try:
                self._ready.append((request, _run(request).commit(own)))
                if request.watch:
                    request.watch(own, self._ready[-1][1].tokens)
            except DSparkError as error:
                request.error = error
                self._ready.append((request, Round(())))
            if request.error or _run(request).finish_reason:
                self._end(request)
        seconds = perf_counter() - started
        if behind:
            self._pieces.observe(len(passes[-1].tokens), n_rows, seconds)
            _run(behind[0]).read_seconds += seconds
        elif plain:
            self._whole.add_pass(n_rows, seconds)


def _run(request: Request) -> Generation:
    """Of a request that has a place."""
    assert request.run is not None
    return request.run
