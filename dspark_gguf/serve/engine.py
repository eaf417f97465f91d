"""The thread that owns both models and answers all requests together.

Turns come in through a bounded queue; updates go out through each turn's `post`. Waking the event
loop takes time from the passes, so it is woken once for all updates: the first and the last update
of an answer are sent at once, those in between a few times a second.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from time import monotonic
from typing import Any

from dspark_gguf.batching import Batcher
from dspark_gguf.config import Speculation
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, DSparkError
from dspark_gguf.records import Round
from dspark_gguf.serve.errors import RequestError, request_error_of
from dspark_gguf.serve.metrics import Metrics
from dspark_gguf.serve.turns import Turn, Update, post_all

_PLAIN = Speculation(mode="off")
#: Idle seconds after which costs are measured again, and the maximum time for that.
_IDLE_SECONDS, _MEASURING_SECONDS = 2.0, 0.5
#: Maximum time that text is held back, to be sent with that of later passes; nobody reads faster.
_UPDATE_SECONDS = 0.05


def shutting_down() -> RequestError:
    """The error of an answer that ends because the server shuts down."""
    return RequestError(503, "the server is shutting down", "shutting_down")


class Engine:
    """Answers turns until it is closed.

    Args:
        pair: opened for several conversations; nothing else may use it meanwhile.
        speculation: when to draft, for all requests.
        parallel: maximum answers in one pass; None: as many as raise the throughput.
        queue: maximum turns that wait for a place in the pass.
    """

    def __init__(
        self,
        pair: Pair,
        speculation: Speculation | None = None,
        parallel: int | None = None,
        queue: int = 64,
    ) -> None:
        self.pair, self.queue = pair, queue
        self.metrics = Metrics()
        self._changed = Condition()
        self._inbox: deque[Turn] = deque()
        self._turns: set[Turn] = set()
        self._updates: dict[Turn, Update] = {}
        self._sent_at = self._pass_seconds = 0.0
        self._call_in_loop: Callable[..., object] = lambda *_: None  # until a turn is submitted
        self._deadline: float | None = None
        self._is_closed = self._is_measuring = False
        batcher: Future[Batcher] = Future()
        self._thread = Thread(
            target=self._run, args=(batcher, speculation, parallel), name="engine", daemon=True
        )
        self._thread.start()
        self.batcher = batcher.result()

    @property
    def is_stopping(self) -> bool:
        """Whether no more turns are accepted."""
        return self._deadline is not None or self._is_closed or not self._thread.is_alive()

    @property
    def running(self) -> int:
        """Number of answers in the next pass."""
        return min(self.batcher.running, len(self._turns))

    @property
    def waiting(self) -> int:
        """Number of turns in the queue."""
        return max(0, len(self._turns) - self.batcher.running)

    @property
    def slots(self) -> int:
        """Maximum number of answers in one pass."""
        return self.batcher.parallel

    def turns(self) -> list[Turn]:
        """Turns that are being answered, the oldest first."""
        running = [turn for turn in list(self._turns) if turn.request and turn.request.run]
        return sorted(running, key=lambda turn: turn.began)

    def submit(self, turns: Sequence[Turn], call_in_loop: Callable[..., object]) -> None:
        """Queue turns, all or none; `call_in_loop` calls a function in the loop that awaits them.

        Raises:
            RequestError: the queue is full (429), or the server is shutting down (503).
        """
        with self._changed:
            self.require_room(len(turns))
            self._call_in_loop = call_in_loop
            self._turns.update(turns)
            self._inbox.extend(turns)
            if self._is_measuring:
                self.pair.interrupt.set()
            self._changed.notify()

    def require_room(self, count: int) -> None:
        """Raise a `RequestError` unless there is room for `count` more turns."""
        if self.is_stopping:
            raise shutting_down()
        most = self.slots + self.queue
        if count > most:
            raise RequestError(400, f"{count} answers are more than the maximum, {most}", param="n")
        if len(self._turns) + count > most:
            problem = f"the queue is full ({len(self._turns)} answers are pending): try again later"
            raise RequestError(429, problem, "queue_full")

    def cancel(self, turns: Sequence[Turn]) -> None:
        """End these turns before the next pass; callable from any thread."""
        for turn in turns:
            turn.is_cancelled = True

    def stop(self, seconds: float) -> None:
        """Accept no more turns, and end running ones after `seconds`; safe in a signal handler."""
        self._deadline = monotonic() + seconds

    def close(self) -> None:
        """End all turns at once, and wait for the thread to end."""
        self._is_closed = True
        self.pair.interrupt.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()
        self.pair.interrupt.clear()

    def _run(
        self, batcher: Future[Batcher], speculation: Speculation | None, parallel: int | None
    ) -> None:
        # The batcher, which measures costs, is made in this thread too: OpenMP keeps a team for
        # each thread that ever ran a pass, and with more threads than cores, all of them sleep at
        # each step of a pass instead of spinning.
        try:
            batcher.set_result(Batcher(self.pair, speculation, parallel))
        except BaseException as error:
            batcher.set_exception(error)
            return
        try:
            while self._wait():
                self._run_pass()
        finally:  # no client may wait forever, even if the thread fails
            self._is_closed = True
            self._fail_all(shutting_down())
            self._send_updates()

    def _run_pass(self) -> None:
        """Run a pass; if it fails, all current answers fail, but the engine goes on."""
        try:
            self._admit()
            self._send_updates()  # rejected requests need not wait for a pass
            self._step()
        except Cancelled:
            pass  # by `close`
        except Exception as error:
            if not isinstance(error, DSparkError):
                traceback.print_exc(file=sys.stderr)
            self._fail_all(request_error_of(error))
        finally:
            self._send_updates()

    def _send_updates(self) -> None:
        """Post the updates, unless they can wait for those of the next pass."""
        updates, now = list(self._updates.values()), monotonic()
        is_urgent = any(update.is_over or not update.turn.was_sent for update in updates)
        is_early = now + self._pass_seconds < self._sent_at + _UPDATE_SECONDS
        if not updates or (is_early and not is_urgent):
            return
        self._updates, self._sent_at = {}, now
        for update in updates:
            update.turn.was_sent = True
        try:
            self._call_in_loop(post_all, updates)
        except RuntimeError:  # the event loop is closed
            self.cancel([update.turn for update in updates])

    def _wait(self) -> bool:
        """Wait for a turn; False if the engine is closed. After some idle time, measure costs."""
        with self._changed:
            was_busy = self.metrics.passes > 0
            while not self._turns and not self._is_closed:
                if not self._changed.wait(_IDLE_SECONDS if was_busy else None):
                    was_busy = False
                    self._measure()
            return not self._is_closed

    def _measure(self) -> None:
        """Measure the costs again; a new turn interrupts this. Releases the lock meanwhile."""
        self._is_measuring = True
        self._changed.release()
        try:
            self.pair.measure_again(_MEASURING_SECONDS)
        except DSparkError:
            pass  # for example, the context has no free cells; the old costs remain
        finally:
            self._changed.acquire()
            self._is_measuring = False
            if not self._is_closed:
                self.pair.interrupt.clear()

    def _admit(self) -> None:
        """Submit new turns to the batcher, and end those that were cancelled or are too late."""
        while self._inbox:
            turn = self._inbox.popleft()
            if turn.is_cancelled:
                self._finish(turn, Round((), finish_reason="cancelled"))
                continue
            try:
                turn.request = self.batcher.submit(
                    turn.prompt, turn.sampling, turn.limits, key=turn, draws=turn.draws
                )
                collects = turn.top_logprobs is not None
                turn.request.watch = turn.collect_logprobs if collects else None
                turn.request.speculation = None if turn.drafts else _PLAIN
                turn.request.spelled = turn.spelled
            except DSparkError as error:
                self._finish(turn, Round(()), error)
        if self._deadline is not None and monotonic() > self._deadline:
            self._fail_all(shutting_down())
        for turn in [each for each in list(self._turns) if each.is_cancelled]:
            self._cancel_request(turn)

    def _step(self) -> None:
        began, before = monotonic(), self.batcher.running
        rounds = self.batcher.step()
        self._pass_seconds = monotonic() - began
        # Answers begin and end during a step: the largest count took part in its pass, if any.
        answered = sum(round.verdict is not None for _, round in rounds)
        if count := max(before, self.batcher.running, answered):
            self.metrics.add_pass(count)
        for request, round in rounds:
            turn: Any = request.key
            if turn not in self._turns:
                continue
            if request.is_over:
                self._finish(turn, round, request.error)
            elif round.text or turn.top_logprobs is not None:
                self._add_update(turn, round)

    def _finish(self, turn: Turn, round: Round, error: Exception | None = None) -> None:
        reason = "error" if error else round.finish_reason or "stop"
        self.metrics.add_answer(turn.answer, reason)
        with self._changed:
            self._turns.discard(turn)
        self._add_update(turn, round, error)

    def _add_update(self, turn: Turn, round: Round, error: Exception | None = None) -> None:
        self._updates[turn] = turn.update(round, error).after(self._updates.get(turn))

    def _cancel_request(self, turn: Turn) -> None:
        if turn.request is not None:
            self.batcher.cancel(turn.request)

    def _fail_all(self, error: Exception) -> None:
        """End every turn with this error."""
        with self._changed:  # a turn added in between would end here and still be in the inbox
            self._inbox.clear()
            turns = list(self._turns)
        for turn in turns:
            self._cancel_request(turn)
            self._finish(turn, Round(()), error)
