"""Admission: requests that wait, requests that run, and their slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Rows, common_prefix
from dspark_gguf.errors import DSparkError
from dspark_gguf.generation import Generation
from dspark_gguf.noise import Draws
from dspark_gguf.records import Round
from dspark_gguf.slots import WORTH_IT, Slot, Slots
from dspark_gguf.tally import Answer

#: Answer tokens that must fit into the free cells before a request starts, unless it is limited.
_AHEAD = 256


@dataclass(eq=False)
class Request:
    """A prompt to be answered, and its answer so far.

    Attributes:
        key: anything by which the caller identifies it.
        answer: all rounds so far, put together; its `finish_reason` is why it ended.
        error: why it could not be answered or finished, if so.
        is_over: whether its last round was returned, or comes with the next step.

    """

    key: Any
    prompt: Sequence[int]
    sampling: Sampling
    limits: Limits
    draws: Draws
    answer: Answer = field(default_factory=Answer)
    error: DSparkError | None = None
    is_over: bool = False
    run: Generation | None = None  # once it has a slot
    slot: Slot | None = None
    speculation: Speculation | None = None  # None: the batcher's
    spelled: Mapping[int, bytes] | None = None  # control tokens that are text here
    #: Called with the rows of a pass and the tokens that were drawn from them, in order.
    watch: Callable[[Rows, Sequence[int]], object] | None = None

    @property
    def live(self) -> Generation:
        """The answer in progress, of a request that has had a slot."""
        assert self.run is not None
        return self.run


class Admission:
    """Which requests wait, which run, and which rounds are ready.

    Args:
        pair: opened for several conversations.
        start: starts a request's answer in its slot; a `DSparkError` ends the request.
        parallel: maximum number of running requests.

    """

    def __init__(
        self, pair: Pair, start: Callable[[Request, Slot], Generation], parallel: int
    ) -> None:
        self._pair, self._start, self._parallel = pair, start, parallel
        self._slots = Slots(pair)
        self._waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.ready: list[tuple[Request, Round]] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do or to return."""
        return not (self._waiting or self.running or self.ready)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def clear(self) -> None:
        """Forget what finished answers left in the caches."""
        self._slots.clear()

    def admit(self) -> None:
        """Start or resume the oldest waiting requests for which there is room."""
        n_ctx = self._pair.target_cache.context.n_ctx
        while self._waiting and len(self.running) < self._parallel:
            request, used = self._waiting[0], sum(map(_needed, self.running))
            if self.running and _needed(request) > n_ctx - used:
                return
            if request.run is None and (self._is_read_now(request) or not self._begin(request)):
                return
            if not request.is_over:
                self.running.append(self._waiting.popleft())

    def move_out(self) -> None:
        """Move a finished answer to RAM, where it does not slow down the running ones."""
        if self.running:
            self._slots.move_out()

    def _is_read_now(self, request: Request) -> bool:
        """Whether a running request is reading the same prefix, which can be copied afterwards."""
        prompt = request.prompt[:-1]
        for other in self.running:
            slot = other.slot
            if slot is None or not slot.can_share or other.live.unread == 1:
                continue
            common = common_prefix(other.live.tokens[:-1], prompt)
            gain = common - WORTH_IT
            if gain >= slot.target.length and gain >= self._slots.reusable(prompt):
                slot.target.checkpoint_at(common)
                return True
        return False

    def _begin(self, request: Request) -> bool:
        """Give a request a slot; False if all are taken."""
        slot = self._slots.take(request.prompt)
        if slot is None:
            return False
        request.slot = slot
        try:
            request.run = self._start(request, slot)
        except DSparkError as error:
            request.error = error
            self.end(request, Round(()))
        except BaseException:  # such as an interrupt: the request stays first in the queue
            self._slots.leave(slot)
            slot.clear()
            raise
        else:
            if not request.run.room:
                self.end(request, request.run.end("length"))
        return True

    def emit(self, request: Request, round: Round) -> None:
        """Add a round to the answer, at once: an interrupt may keep it from being returned."""
        request.answer.add(round)
        self.ready.append((request, round))

    def end(self, request: Request, round: Round | None = None) -> None:
        """End a request and release its slot, which keeps its tokens as a prefix for others."""
        if round is not None:
            self.emit(request, round)
        request.is_over = True
        self._waiting = deque(each for each in self._waiting if each is not request)
        self.running = [each for each in self.running if each is not request]
        if request.slot is not None:
            self._slots.leave(request.slot)
            if request.run is None:
                request.slot.clear()
            elif request.error is not None:
                request.run.abandon()
            elif request.run.unread > 1:  # it ended while its prompt was read
                request.slot.target.checkpoint_at(request.slot.target.length)
        self._pair.after_answer(len(request.answer.tokens))

    def free_draft(self) -> bool:
        """Free the draft's cells of the oldest finished answer; False if there is none."""
        return self._slots.free_draft()

    def make_room(self) -> None:
        """Free the cells of the oldest finished answer, or of the newest running one."""
        if self._slots.make_room():
            return
        newest = self.running[-1]
        if len(self.running) == 1:
            self.end(newest, newest.live.end("context"))
            return
        self.running.pop()
        self._waiting.appendleft(newest)
        if newest.slot is not None:
            newest.slot.clear()


def _needed(request: Request) -> int:
    """Cells that a request needs, including the first part of its answer."""
    if request.run is None:
        most = request.limits.max_tokens
        return len(request.prompt) + (_AHEAD if most is None else min(most, _AHEAD))
    return len(request.run.tokens) + min(request.run.room, _AHEAD)
