"""Answer one prompt, or a file of them: what scripts call."""

from __future__ import annotations

import sys

from dspark_gguf.chat.answers import answer_all, as_dict
from dspark_gguf.chat.jobs import Job
from dspark_gguf.chat.progress import track, waited_for
from dspark_gguf.chat.results import Results
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import Screen
from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled
from dspark_gguf.noise import some_seed
from dspark_gguf.signals import interruptible
from dspark_gguf.tally import Answer
from dspark_gguf.visible import as_json as json_line


def _with_seed(settings: Settings, seed: int | None) -> Settings:
    """The settings with a seed: their own, this one, or a random one, to be shown and reused."""
    if settings.sampling.seed is not None:
        return settings
    sampling = settings.sampling.model_copy(update={"seed": some_seed(seed)})
    return settings.model_copy(update={"sampling": sampling})


def encode(pair: Pair, settings: Settings, text: str, raw: bool) -> list[int]:
    """Tokens of a prompt: unchanged if `raw`, else as the first message of a conversation."""
    if not raw:
        return Session(pair, settings, [{"role": "user", "content": text}]).prompt()[1]
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
    settings = _with_seed(settings, None)
    screen, answer = Screen(), Answer()
    screen.markdown = settings.chat.markdown
    with interruptible(pair.interrupt):
        session = Session(pair, settings)
        if raw:
            prompt = encode(pair, settings, text, raw)
            rounds = session.compared(session.decoder.generate(prompt, settings.limits))
        else:
            rounds = session.ask(text)
        for round in waited_for(rounds, "reading"):
            answer.add(round)
            if not as_json:
                screen.write(round.text)
    if as_json:
        plain, ratio = session.summary.plain, session.summary.ratio
        values = as_dict(pair, settings, answer)
        values["plain_tokens_per_second"] = plain and float(f"{plain:.3f}")
        values["speedup"] = ratio and float(f"{ratio:.3f}")
        print(json_line(values, sys.stdout))  # noqa: T201
    elif answer.text:
        screen.end_answer()
    else:
        screen.write("\n")
    if screen.on_terminal and not as_json:
        summary = session.summary
        seed = "" if summary.seed is None else f" · seed {summary.seed}"
        screen.note(status_line(answer, summary) + seed)
    elif answer.finish_reason == "context":
        screen.note("the answer ends here: the context is full. Use a larger --ctx-size.")
    return Cancelled.exit_code if answer.finish_reason == "cancelled" else 0


def run_batch(
    pair: Pair, settings: Settings, jobs: list[Job], results: Results, parallel: int | None = 1
) -> int:
    """Answer the jobs that have no result yet; returns the exit code.

    A job that cannot be answered (a prompt longer than the context) gets a result with ``error``,
    and the exit code is 1. A resumed run keeps its seed.
    """
    settings = _with_seed(settings, results.seed)
    screen, total = Screen(), len(jobs)
    done, failed = len(results.kept), sum(results.kept.values())
    if done or results.retried:
        again = f"; trying {results.retried} again that failed before" * bool(results.retried)
        screen.note(f"resuming {results.path}: {done} of {total} finished{again}")
    left = [job for job in jobs if job.index not in results.kept]
    answers = answer_all(pair, settings, left, parallel)
    with interruptible(pair.interrupt), results.writing(left) as write:
        try:
            for job, outcome in track(
                answers, total, done, lambda one: len(one[1].get("tokens", ()))
            ):
                write({"index": job.index, "input": job.input, **outcome})
                done, failed = done + 1, failed + ("error" in outcome)
        except Cancelled:
            again = "run it again to resume" if results.path else "with -o it could be resumed"
            screen.note(f"interrupted: {done} of {total} finished; {again}")
            return Cancelled.exit_code
    if failed:
        screen.error(f'{failed} of {total} failed: see "error" in their results')
    return 1 if failed else 0
