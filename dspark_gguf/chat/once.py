"""Answer one prompt, or a file of them: what scripts call."""

from __future__ import annotations

import secrets
import sys
from typing import Any

from dspark_gguf.chat.batch import Job
from dspark_gguf.chat.progress import tracked
from dspark_gguf.chat.results import Results
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import Screen, interruptible
from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, DSparkError
from dspark_gguf.tally import Answer
from dspark_gguf.visible import as_json as json_line

INTERRUPTED = 130


def with_seed(settings: Settings, seed: int | None = None) -> Settings:
    """The settings with a seed: their own, this one, or a random one, to be shown and reused."""
    if settings.sampling.seed is not None:
        return settings
    seed = secrets.randbits(32) if seed is None else seed
    sampling = settings.sampling.model_copy(update={"seed": seed})
    return settings.model_copy(update={"sampling": sampling})


def encode(pair: Pair, settings: Settings, text: str, raw: bool) -> list[int]:
    """Tokens of a prompt: unchanged if `raw`, else as the first message of a conversation."""
    if not raw:
        system = settings.chat.system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        return pair.template.encode(messages, settings.chat.think)
    vocabulary = pair.vocabulary
    tokens, bos = vocabulary.tokenize(text), vocabulary.bos
    if vocabulary.adds_bos and tokens[:2] == [bos, bos]:
        spelled = vocabulary.text(bos).decode("utf-8", "replace")
        Screen().note(
            f"note: the prompt begins with {spelled} twice, because the model adds one; "
            "leave it out of the text"
        )
    return tokens


def run_prompt(pair: Pair, settings: Settings, text: str, raw: bool, as_json: bool) -> int:
    """Answer on stdout, streamed, or as one JSON object; returns the exit code."""
    settings = with_seed(settings)
    screen, answer = Screen(), Answer()
    with interruptible(pair.interrupt):
        session = Session(pair, settings)
        prompt = encode(pair, settings, text, raw) if raw else []
        generate = session.decoder.generate
        for round in generate(prompt, settings.limits) if raw else session.ask(text):
            answer.add(round)
            if not as_json:
                screen.write(round.text)
    if as_json:
        print(json_line(answer.as_dict(settings.model_dump(mode="json")), sys.stdout))  # noqa: T201
    elif not answer.text.endswith("\n"):
        screen.write("\n")
    if screen.on_terminal and not as_json:
        screen.note(status_line(answer, session.outlook))
    elif answer.finish_reason == "context":
        screen.note("the answer ends here: the context is full. Use a larger --ctx-size.")
    return INTERRUPTED if answer.finish_reason == "cancelled" else 0


def run_batch(pair: Pair, settings: Settings, jobs: list[Job], results: Results) -> int:
    """Answer the jobs that have no result yet; returns the exit code.

    A job that cannot be answered (a prompt longer than the context) gets a result with ``error``,
    and the exit code is 1. A resumed run keeps its seed.
    """
    settings = with_seed(settings, results.seed)
    screen, total = Screen(), len(jobs)
    done, failed = len(results.kept), sum(results.kept.values())
    if done or results.retried:
        again = f"; {results.retried} failed before and are tried again" * bool(results.retried)
        screen.note(f"resuming {results.path}: {done} of {total} finished{again}")

    def answer(job: Job) -> dict[str, Any]:
        try:
            result = _answer_job(pair, settings, job)
        except DSparkError as error:
            return {"error": str(error)}
        if result.finish_reason == "cancelled":
            raise Cancelled
        return result.as_dict(settings.model_dump(mode="json"))

    left = [job for job in jobs if job.index not in results.kept]
    with interruptible(pair.interrupt), results.writing() as write:
        try:
            for job in tracked(left, total, done):
                result = {"index": job.index, "input": job.input, **answer(job)}
                write(result)
                done, failed = done + 1, failed + ("error" in result)
        except Cancelled:
            again = "run it again to resume" if results.path else "with -o it could be resumed"
            screen.note(f"interrupted: {done} of {total} finished; {again}")
            return INTERRUPTED
    if failed:
        screen.error(f'{failed} of {total} failed: see "error" in their results')
    return 1 if failed else 0


def _answer_job(pair: Pair, settings: Settings, job: Job) -> Answer:
    answer = Answer()
    for round in Session(pair, settings, job.messages).reply():
        answer.add(round)
    return answer
