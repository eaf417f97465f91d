"""One prompt and out, or a file of them: what a script calls."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspark_gguf.chat.batch import Job, finished, run_jobs
from dspark_gguf.chat.progress import tracked
from dspark_gguf.chat.session import Session, outlook
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import Screen, decoded, interruptible, read_text
from dspark_gguf.config import Settings
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import Cancelled, DSparkError, UsageError
from dspark_gguf.records import Answer, Round
from dspark_gguf.visible import as_json as json_line

INTERRUPTED = 130


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt from a file, from stdin unless that is a terminal, and from the argument.

    The question comes after what it is about: `cat main.c | dspark-gguf run "What is wrong?"`.

    Raises:
        UsageError: nothing but white space, an unreadable file, or no UTF-8.

    """
    parts = []
    if file is not None:
        parts.append(read_text(file))
    if not sys.stdin.isatty():
        parts.append(decoded(sys.stdin.buffer.read(), "stdin"))
    if argument is not None:
        parts.append(decoded(argument.encode("utf-8", "surrogateescape"), "the argument"))
    said = [part for part in parts if part.strip()]
    if not said:
        raise UsageError(
            "a prompt as argument, with -f FILE or on stdin", "none", "write one; see --help"
        )
    # Parts are joined like paragraphs; a part alone stays as it is, to the last newline.
    return said[0] if len(said) == 1 else "\n\n".join(part.strip("\n") for part in said)


def with_seed(settings: Settings) -> Settings:
    """The settings with a seed chosen if there is none, so that it can be shown and used again."""
    if settings.sampling.seed is not None:
        return settings
    sampling = settings.sampling.model_copy(update={"seed": secrets.randbits(32)})
    return settings.model_copy(update={"sampling": sampling})


def encode(pair: Pair, settings: Settings, text: str, raw: bool) -> list[int]:
    """Tokens of a prompt: as it is, or as the first message of a conversation."""
    if raw:
        return _raw(pair.vocabulary, text)
    system = [{"role": "system", "content": settings.chat.system}] if settings.chat.system else []
    messages = [*system, {"role": "user", "content": text}]
    return pair.template.encode(messages, settings.chat.think)


def _raw(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens of `text` as it is; says so where it begins with the token that is put before it."""
    tokens, bos = vocabulary.tokenize(text), vocabulary.bos
    if vocabulary.adds_bos and tokens[:2] == [bos, bos]:
        spelled = vocabulary.text(bos).decode("utf-8", "replace")
        Screen().note(
            f"note: the prompt begins with {spelled} twice: the model's own, and that of the text; "
            "leave it out of the text"
        )
    return tokens


def run_prompt(pair: Pair, settings: Settings, text: str, raw: bool, as_json: bool) -> int:
    """Answer on stdout, streamed, or as one JSON object; returns the exit code."""
    settings = with_seed(settings)
    screen, answer = Screen(), Answer()
    with interruptible(pair.interrupt):
        decoder, rounds = _rounds(pair, settings, text, raw)
        for round in rounds:
            answer.add(round)
            if not as_json:
                screen.write(round.text)
    if as_json:
        print(json_line(answer.as_dict(settings.model_dump(mode="json"))))  # noqa: T201
    elif not answer.text.endswith("\n"):
        screen.write("\n")
    if screen.on_terminal and not as_json:
        screen.note(status_line(answer, outlook(decoder, settings.speculation)))
    elif answer.finish_reason == "context":
        screen.note("the answer ends here: the context is full; use a larger --ctx-size")
    return INTERRUPTED if answer.finish_reason == "cancelled" else 0


def run_batch(pair: Pair, settings: Settings, jobs: list[Job], output: Path | None) -> int:
    """Answer the jobs that `output` does not hold yet; returns the exit code.

    A job that cannot be answered (a prompt longer than the context) becomes a result with
    ``error``; the others go on, and the exit code is 1.
    """
    settings = with_seed(settings)
    done = finished(output, jobs) if output else 0
    screen = Screen()
    if done:
        screen.note(f"{done} of {len(jobs)} are finished in {output}: going on from there")

    def answer(job: Job) -> dict[str, Any]:
        try:
            result = _answer_job(pair, settings, job)
        except DSparkError as error:
            return {"error": str(error)}
        if result.finish_reason == "cancelled":
            raise Cancelled
        return result.as_dict(settings.model_dump(mode="json"))

    failed = 0
    with interruptible(pair.interrupt), _writing_to(output) as write:
        try:
            for result in tracked(run_jobs(jobs[done:], answer, write), len(jobs), done):
                done, failed = done + 1, failed + ("error" in result)
        except Cancelled:
            again = "the same command goes on from there" if output else "--output would resume"
            screen.note(f"interrupted: {done} of {len(jobs)} finished; {again}")
            return INTERRUPTED
    if failed:
        screen.error(f'{failed} of {len(jobs)} could not be answered: see their "error"')
    return 1 if failed else 0


def _rounds(
    pair: Pair, settings: Settings, text: str, raw: bool
) -> tuple[Decoder, Iterator[Round]]:
    if not raw:
        session = Session(pair, settings)
        return session.decoder, session.ask(text)
    decoder = Decoder.for_pair(pair, settings.sampling, settings.speculation)
    return decoder, decoder.generate(encode(pair, settings, text, raw), settings.limits)


def _answer_job(pair: Pair, settings: Settings, job: Job) -> Answer:
    answer = Answer()
    for round in Session(pair, settings, job.messages).reply():
        answer.add(round)
    return answer


@contextmanager
def _writing_to(output: Path | None) -> Iterator[Callable[[str], object]]:
    def line_by_line(stream: Any) -> Callable[[str], object]:
        def write(line: str) -> None:
            stream.write(line)
            stream.flush()

        return write

    if output is None:
        yield line_by_line(sys.stdout)
        return
    try:
        stream = output.open("a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"to write {output}", str(error.strerror), "check the path") from None
    with stream:
        yield line_by_line(stream)
