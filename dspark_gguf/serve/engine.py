"""The thread that owns both models and answers all requests together.

Requests come in through a bounded queue; updates go out through each turn's `post`. The event loop
is woken once for all updates and not too often, because that takes time from the passes: first and
last updates are sent at once, those in between a few times a second.
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
#: Idle seconds after which costs are measured again, and the maximum seconds for that.
_IDLE_SECONDS, _MEASURING_SECONDS = 2.0, 0.5
#: Maximum time that text waits for that of the next pass; nobody reads faster.
_WAITS_SECONDS = 0.05


def stopping() -> RequestError:
    """The error of a turn that ends because the server shuts down."""
    return RequestError(503, "the server is shutting down", "shutting_down")


class Engine:
    """Answers turns until it is closed.

    Args:
        pair: opened for several conversations; nothing else may use it meanwhile.
        speculation: when to draft, for all requests.
        parallel: maximum answers in one pass; None: as many as pay.
        queue: maximum turns that may wait in addition.
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
        self._posted_at = self._pass_seconds = 0.0
        self._call: Callable[..., object] = lambda *_: None  # until somebody waits
        self._ends_at: float | None = None
        self._is_closed = self._is_measuring = False
        made: Future[Batcher] = Future()
        self._thread = Thread(
            target=self._run, args=(made, speculation, parallel), name="engine", daemon=True
        )
        self._thread.start()
        self.batcher = made.result()

    @property
    def is_alive(self) -> bool:
        """Whether it answers requests."""
        return self._thread.is_alive() and not self._is_closed

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more turns."""
        return self._ends_at is not None or not self.is_alive

    @property
    def running(self) -> int:
        """Answers that share the next pass."""
        return min(self.batcher.running, len(self._turns))

    @property
    def waiting(self) -> int:
        """Turns in the queue."""
        return max(0, len(self._turns) - self.batcher.running)

    @property
    def slots(self) -> int:
        """Maximum answers in one pass."""
        return self.batcher.parallel

    def turns(self) -> list[Turn]:
        """Turns that are being answered, the oldest first."""
        found = [turn for turn in list(self._turns) if turn.request and turn.request.run]
        return sorted(found, key=lambda turn: turn.began)

    def submit(self, turns: Sequence[Turn], call: Callable[..., object]) -> None:
        """Queue turns, all or none; `call` runs a function in the event loop that awaits them.

        Raises:
            RequestError: the queue is full (429), or the server is shutting down (503).
        """
        with self._changed:
            self.require_room(len(turns))
            self._call = call
            self._turns.update(turns)
            self._inbox.extend(turns)
            if self._is_measuring:
                self.pair.interrupt.set()
            self._changed.notify()

    def require_room(self, count: int) -> None:
        """Raise a `RequestError` unless there is room for `count` more turns."""
        if self.is_stopping:
            raise stopping()
        most = self.slots + self.queue
        if count > most:
            raise RequestError(400, f"{count} answers at once: here at most {most}", param="n")
        if len(self._turns) + count > most:
            problem = f"{len(self._turns)} requests are being answered or wait: try again later"
            raise RequestError(429, problem, "queue_full")

    def leave(self, turns: Sequence[Turn]) -> None:
        """Their clients have left: these turns end before the next pass."""
        for turn in turns:
            turn.has_left = True

    def stop(self, seconds: float) -> None:
        """Accept no more turns, and end running ones after `seconds`; safe in a signal handler."""
        self._ends_at = monotonic() + seconds

    def close(self) -> None:
        """End everything, and wait for the thread."""
        self._is_closed = True
        self.pair.interrupt.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()
        self.pair.interrupt.clear()

    def _run(
        self, made: Future[Batcher], speculation: Speculation | None, parallel: int | None
    ) -> None:
        # Costs are measured here too: OpenMP keeps a team for each thread that ever ran a pass, and
        # with more threads than cores they sleep at each step of a pass instead of spinning.
        try:
            made.set_result(Batcher(self.pair, speculation, parallel))
        except BaseException as error:
            made.set_exception(error)
            return
        try:
            while self._wait():
                self._run_pass()
        finally:  # whatever happened, nobody must wait forever
            self._is_closed = True
            self._end_all(stopping())
            self._hand_out()

    def _run_pass(self) -> None:
        """One pass; if it fails, all current answers fail, but later ones are answered."""
        try:
            self._admit()
            self._hand_out()  # rejected requests need not wait for a pass
            self._step()
        except Cancelled:
            pass  # it is closed
        except Exception as error:
            if not isinstance(error, DSparkError):
                traceback.print_exc(file=sys.stderr)
            self._end_all(request_error_of(error))
        finally:
            self._hand_out()

    def _hand_out(self) -> None:
        """Send the updates of the passes, unless the next pass will be finished soon."""
        updates, now = list(self._updates.values()), monotonic()
        is_urgent = any(update.is_over or not update.turn.has_begun for update in updates)
        is_early = now + self._pass_seconds < self._posted_at + _WAITS_SECONDS
        if not updates or (is_early and not is_urgent):
            return
        self._updates, self._posted_at = {}, now
        for update in updates:
            update.turn.has_begun = True
        try:
            self._call(post_all, updates)
        except RuntimeError:  # the loop has ended
            self.leave([update.turn for update in updates])

    def _wait(self) -> bool:
        """Wait until there is something to do; False if it is closed."""
        with self._changed:
            was_busy = self.metrics.passes > 0
            while not self._turns and not self._is_closed:
                if not self._changed.wait(_IDLE_SECONDS if was_busy else None):
                    was_busy = False
                    self._measure()
            return not self._is_closed

    def _measure(self) -> None:
        """Measure the costs again while idle; a new turn ends it."""
        self._is_measuring = True
        self._changed.release()
        try:
            self.pair.measure_again(_MEASURING_SECONDS)
        except DSparkError:
            pass  # such as a context whose cells are all taken; the costs stay as they are
        finally:
            self._changed.acquire()
            self._is_measuring = False
            if not self._is_closed:
                self.pair.interrupt.clear()

    def _admit(self) -> None:
        while self._inbox:
            turn = self._inbox.popleft()
            if turn.has_left:
                self._over(turn, Round((), finish_reason="cancelled"))
                continue
            try:
                turn.request = self.batcher.submit(
                    turn.prompt, turn.sampling, turn.limits, key=turn, draws=turn.draws
                )
                turn.request.watch = None if turn.top is None else turn.watch
                turn.request.speculation = None if turn.drafts else _PLAIN
                turn.request.spelled = turn.spelled
            except DSparkError as error:
                self._over(turn, Round(()), error)
        is_late = self._ends_at is not None and monotonic() > self._ends_at
        if is_late:
            self._end_all(stopping())
        for turn in [each for each in list(self._turns) if each.has_left]:
            self._cancel(turn)

    def _step(self) -> None:
        began, before = monotonic(), self.batcher.running
        rounds = self.batcher.step()
        self._pass_seconds = monotonic() - began
        self.metrics.add_pass(max(before, self.batcher.running))  # some begin in it, some end
        for request, round in rounds:
            turn: Any = request.key
            if turn not in self._turns:
                continue
            if request.is_over:
                self._over(turn, round, request.error)
            elif round.text or turn.top is not None:
                self._add_update(turn, round)

    def _over(self, turn: Turn, round: Round, error: Exception | None = None) -> None:
        reason = "error" if error else round.finish_reason or "stop"
        self.metrics.add_answer(turn.answer, reason)
        with self._changed:
            self._turns.discard(turn)
        self._add_update(turn, round, error)

    def _add_update(self, turn: Turn, round: Round, error: Exception | None = None) -> None:
        self._updates[turn] = turn.update(round, error).after(self._updates.get(turn))

    def _cancel(self, turn: Turn) -> None:
        if turn.request is not None:
            self.batcher.cancel(turn.request)

    def _end_all(self, error: Exception) -> None:
        """End every turn with this error."""
        with self._changed:  # so that no turn is added meanwhile, ended here and started later
            self._inbox.clear()
            turns = list(self._turns)
        for turn in turns:
            self._cancel(turn)
            self._over(turn, Round(()), error)
