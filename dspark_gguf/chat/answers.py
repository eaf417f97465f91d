"""Answer many prompts: the jobs of a file, or the rows of a Ray dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from dspark_gguf import __version__
from dspark_gguf.admission import Request
from dspark_gguf.batching import Batcher
from dspark_gguf.chat.jobs import Job
from dspark_gguf.chat.session import Session
from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, DSparkError
from dspark_gguf.noise import Noise
from dspark_gguf.tally import Answer

#: The result of a job: an answer as plain values, or ``{"error": ...}``.
Outcome: TypeAlias = dict[str, Any]

#: More conversations at once hardly raised throughput on any machine we measured.
MAX_AT_ONCE = 16


def answer_all(
    pair: Pair, settings: Settings, jobs: Iterable[Job], parallel: int | None = None
) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome as soon as it finishes.

    `parallel` limits the conversations in one pass, up to those that the pair was opened for; None:
    as many as pay. A job that fails, such as a prompt longer than the context, does not affect the
    others. Once `pair.interrupt` is set, Cancelled is raised and the other jobs are left.
    """
    if settings.chat.context_shift:  # the prompt may change in the middle of an answer
        yield from ((job, _answer_alone(pair, settings, job)) for job in jobs)
        return
    batcher = Batcher(pair, settings.speculation, parallel)
    going: dict[Request, tuple[Job, Settings]] = {}
    waiting = iter(jobs)
    while True:
        while len(going) < 2 * batcher.parallel and (job := next(waiting, None)):
            try:
                own = job.settings(settings)
                going[_submit(batcher, own, job)] = job, own
            except DSparkError as error:
                yield job, {"error": str(error)}
        if not going:
            return
        for request, _ in batcher.step():
            if request.is_over and request in going:
                job, own = going.pop(request)
                yield job, _outcome(pair, own, request.answer, request.error)


def _submit(batcher: Batcher, settings: Settings, job: Job) -> Request:
    session = Session(batcher.pair, settings, job.messages)
    draws = Noise.of(session.seed, session.answers)
    return batcher.submit(session.prompt()[1], settings.sampling, settings.limits, draws=draws)


def _outcome(pair: Pair, settings: Settings, answer: Answer, error: DSparkError | None) -> Outcome:
    return as_dict(pair, settings, answer) if error is None else {"error": str(error)}


def as_dict(pair: Pair, settings: Settings, answer: Answer) -> Outcome:
    """An answer as plain values, with the models and all settings that differ from the defaults."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    draft = pair.caches.get("draft")
    models = {"model": pair.target.name, "draft": None if draft is None else draft.model.name}
    return {**answer.as_dict(), **models, "version": __version__, "settings": changed}


def _answer_alone(pair: Pair, settings: Settings, job: Job) -> Outcome:
    answer, failed = Answer(), None
    try:
        settings = job.settings(settings)
        for round in Session(pair, settings, job.messages).reply():
            answer.add(round)
    except DSparkError as error:
        failed = error
    if answer.finish_reason == "cancelled":
        raise Cancelled
    return _outcome(pair, settings, answer, failed)
