"""Many conversations in one pass: continuous batching with speculative decoding.

Every pass of the target serves all running conversations: it verifies the draft of each, and
prefills as much of new prompts as the others can wait for. ``schedule/shared.py`` decides how many
draft tokens to verify.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from dspark_gguf.admission import Admission, Request
from dspark_gguf.config import MAX_ROWS, Limits, Sampling, Speculation
from dspark_gguf.cost import Costs, seconds_at
from dspark_gguf.decoder import Decoder, require_room
from dspark_gguf.ending import Ending
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import Rows
from dspark_gguf.engine.sequence import decode_together
from dspark_gguf.engine.template import Prompt
from dspark_gguf.errors import CacheFullError, Cancelled, DSparkError, UsageError
from dspark_gguf.generation import Generation
from dspark_gguf.learned import Learned
from dspark_gguf.noise import Draws, Noise
from dspark_gguf.records import Round
from dspark_gguf.sampling import Sampler
from dspark_gguf.schedule import SharedCosts, Source, StoppingRule, make_stopping_rule
from dspark_gguf.schedule.pieces import PrefillChunks
from dspark_gguf.slots import Slot
from dspark_gguf.together import draft_together, verify_together

#: Prompts with more unread tokens are prefilled in chunks.
_SHORT = 16
#: Conversations are added while the throughput is expected to grow by more than this factor.
_PAYS = 1.02


class Batcher:
    """Answers prompts together, on a pair that was opened for several conversations.

    ::

        with load_pair(conversations=8) as pair:
            batcher = Batcher(pair)
            requests = [batcher.submit(pair.template.encode(each, None)) for each in prompts]
            for request, round in batcher:
                ...

    Answers are the same as alone, except for rounding. The context is shared: if it is full,
    requests wait, or are preempted and read again later.

    Args:
        pair: from ``load_pair``.
        speculation: when to draft and what to accept, for all requests.
        parallel: maximum conversations in a pass; default: as many as pay.
        patience: seconds that running answers wait for a prefill chunk of a new prompt.
        learned: costs and calibrations to use and update; default: the pair's own.

    """

    def __init__(
        self,
        pair: Pair,
        speculation: Speculation | None = None,
        parallel: int | None = None,
        patience: float = 0.25,
        learned: Learned | None = None,
    ) -> None:
        if parallel is not None and parallel < 1:
            raise UsageError(f"cannot run {parallel} conversations in a pass", "Give 1 or more.")
        self.pair, self.speculation = pair, Speculation.given(speculation)
        if self.speculation.mode != "off":
            learned = pair.learned(self.speculation, into=learned)
        self._learned = learned or Learned()
        self._whole = whole = self._learned.costs
        count = len(pair.target_caches)
        self._context = pair.target_cache.context
        draft = pair.caches.get("draft")
        joint, is_block = draft is None or draft.joins, draft is not None and draft.kind == "block"
        self._costs = SharedCosts(whole, joint, is_block)
        self._chunks = PrefillChunks(whole, patience, self._context.n_batch)
        self._most_rows = min(MAX_ROWS, self._context.n_batch)
        #: Whether llama.cpp splits a pass over drafts of different lengths.
        self._is_split = pair.target_cache.rollback in ("snapshots", "replay")
        self._rules: dict[tuple[int, ...], StoppingRule] = {}
        self.parallel = min(parallel or self._paying(count), count)
        self._short = max(1, min(_SHORT, self._context.n_batch // (2 * count)))
        self._requests = Admission(pair, self._start, self.parallel)
        self._is_oldests_turn = False

    @property
    def running(self) -> int:
        """Conversations that share the next pass."""
        return len(self._requests.running)

    @property
    def plain_speed(self) -> float:
        """Tokens per second of plain decoding with one conversation; 0: unknown."""
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
            UsageError: an empty prompt, invalid token ids, or settings that this model cannot
                honour.
            ResourceError: a prompt that leaves no room for an answer.

        """
        sampling, limits = Sampling.given(sampling), Limits.given(limits)
        prompt = self.pair.template.ids(prompt)
        require_room(prompt, self.pair.target_cache.n_ctx)
        Sampler.of(sampling, self.pair.vocabulary)
        draws = Noise.of(sampling.seed) if draws is None else draws
        draws.move(len(prompt))
        request = Request(key, prompt, sampling, limits, draws)
        self._requests.add(request)
        return request

    def clear(self) -> None:
        """Forget what finished answers left in the caches."""
        self._requests.clear()

    def cancel(self, request: Request) -> None:
        """End a request; its last round comes with the next `step`."""
        if not request.is_over:
            last = Round((), finish_reason="cancelled")
            self._requests.end(request, request.run.end("cancelled") if request.run else last)

    def __iter__(self) -> Iterator[tuple[Request, Round]]:
        """All rounds until nothing is left to do, including requests submitted meanwhile."""
        while not self._requests.is_done:
            yield from self.step()

    def step(self) -> list[tuple[Request, Round]]:
        """Run one pass; returns a round for every conversation that got tokens or ended.

        Raises:
            Cancelled: ``pair.interrupt`` is set.
            ResourceError: memory is short.
            EngineError: llama.cpp failed.

        """
        if self.pair.interrupt.is_set():
            raise Cancelled
        self._requests.admit()
        self._requests.move_out()
        while self._requests.running:
            try:
                self._pass()
                break
            except CacheFullError:
                self._abandon()
                self._requests.make_room()
            except BaseException:
                self._abandon()
                raise
        rounds, self._requests.ready = self._requests.ready, []
        return rounds

    def _start(self, request: Request, slot: Slot) -> Generation:
        decoder = Decoder.for_pair(
            self.pair,
            request.sampling,
            request.speculation or self.speculation,
            self._learned,
            conversation=slot.number,
            schedule=self._rule,
        )
        ending = Ending(request.limits, self.pair.vocabulary, request.spelled)
        return decoder.start(request.prompt, ending, request.draws)

    def _rule(
        self,
        speculation: Speculation,
        costs: Costs | None = None,
        steps: Source | None = None,
        guesses: Source | None = None,
    ) -> StoppingRule:
        """One rule for all requests with the same calibration, which then learns faster."""
        key = tuple(id(each.calibration) for each in (steps, guesses) if each)
        if costs is None or key not in self._rules:
            shared = None if costs is None else self._costs
            self._rules[key] = make_stopping_rule(speculation, shared, steps, guesses)
        return self._rules[key]

    def _abandon(self) -> None:
        """Drop the drafts of a pass that was not run."""
        for request in self._requests.running:
            request.live.abandon()

    def _paying(self, most: int) -> int:
        """The smallest number of conversations with nearly the maximum throughput."""
        if not self._whole.measured_rows:
            return most
        counts = np.arange(1, most + 1)
        throughput = counts / seconds_at(self._whole.target_seconds, counts)
        return int(np.argmax(throughput * _PAYS >= throughput.max())) + 1

    def _pass(self) -> None:
        running = self._requests.running
        for each in running:
            each.live.resume()
        answering = [each for each in running if each.live.unread <= self._short]
        prefilling = self._in_turns([each for each in running if each.live.unread > self._short])
        chunk, read = self._chunks.size(len(answering)) if prefilling else 0, 0
        while prefilling and read + prefilling[0].live.unread <= chunk:
            read += prefilling[0].live.unread
            answering.append(prefilling.pop(0))
        runs = [each.live for each in answering]
        depth = sum(len(each.live.tokens) for each in running) / len(running)
        self._costs.set_count(max(1, len(runs)), depth)
        drafts = draft_together(runs, self._short, self._costs, self._requests.free_draft)
        room = self._context.n_batch - sum(run.unread for run in runs)
        most = max(0, min(self._most_rows - len(runs), room))
        joint = self.speculation.acceptance != "rejection"
        passes = verify_together(runs, drafts, self._costs, most, joint, self._is_split)
        started = perf_counter()
        n_rows = sum(each.n_rows for each in passes)
        is_round = all(each.n_rows == len(each.tokens) for each in passes)  # and no prompt
        room = min(chunk - read, self._context.n_batch - sum(len(each.tokens) for each in passes))
        ahead = prefilling[0] if prefilling and room > 0 else None
        if ahead is not None:
            passes.append(ahead.live.read_ahead(room))
            read += len(passes[-1].tokens)
        rows = decode_together(passes)
        for request, own in zip(answering, rows, strict=False):
            self._commit(request, own)
        seconds = perf_counter() - started
        if ahead is not None:
            ahead.live.read_seconds += seconds
        if read:
            self._chunks.observe(read, n_rows, seconds)
        if read or not is_round:
            self._costs.see_prompt()
        else:
            self._costs.see_pass(n_rows, seconds)

    def _in_turns(self, prefilling: list[Request]) -> list[Request]:
        """Order prompts for prefill: the shortest first, but the oldest in every other pass."""
        if len(prefilling) > 1:
            self._is_oldests_turn = not self._is_oldests_turn
            if not self._is_oldests_turn:
                prefilling.sort(key=lambda each: each.live.unread)
        return prefilling

    def _commit(self, request: Request, rows: Rows) -> None:
        """Make a request's round from its rows of the pass."""
        try:
            round = request.live.commit(rows)
            if request.watch:
                request.watch(rows, round.tokens)
        except DSparkError as error:
            request.error, round = error, Round(())
        self._requests.emit(request, round)
        if request.error or request.live.finish_reason:
            request.live.scheduler.settle()
            self._costs.settle()
            self._requests.end(request)
