"""Run all steps in order, each from where an earlier run stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

from dspark_gguf.catalog import NO_DRAFT, load_pair
from dspark_gguf.chat.progress import counting
from dspark_gguf.chat.results import locked
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.gguf import Header, read_header
from dspark_gguf.engine.model import Model, file_stamp
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError, UsageError, reason_of
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.paths import file_errors, require_writable, shards
from dspark_gguf.train.collect import Collector
from dspark_gguf.train.generate import (
    SEQUENCES,
    for_generating,
    longest_prompt,
    seconds_a_token,
)
from dspark_gguf.train.plan import Job, forecast
from dspark_gguf.train.prompts import GivenPrompts, OwnPrompts, Source
from dspark_gguf.train.recipe import Recipe
from dspark_gguf.train.record import OnLine
from dspark_gguf.train.shape import Shape, require_trainable
from dspark_gguf.train.work import Recording, Work
from dspark_gguf.visible import counted

if TYPE_CHECKING:  # it loads torch
    from dspark_gguf.train.learn import Learner

Say = Callable[[str], object]


class Training:
    """A job in progress; `run` does the rest of it.

    Raises:
        UsageError: torch is missing, the prompts or the output cannot be used, or the folder
            belongs to another training.
        PairError: no draft can be trained for this target, or not from that draft.

    """

    def __init__(
        self,
        job: Job,
        options: ModelOptions,
        say: Say,
        recipe: Recipe | None = None,
        chat_template: str | None = None,
    ) -> None:
        require_libraries()
        self._job, self._options, self._say = job, options, say
        usual = Recipe(seed=job.seed) if job.start is None else Recipe.refining(job.seed)
        self._recipe, self._template = recipe or usual, chat_template
        self._header: Header = read_header(job.target)
        require_trainable(self._header)
        self._shape = Shape.of_target(self._header)
        if job.start is not None:
            self._shape = Shape.of_draft(read_header(job.start), self._header)
        self._prompts = None if job.prompts is None else read_prompts(job.prompts)

    def run(self) -> dict[str, Any]:
        """Run all steps; returns the manifest's values. A `DSparkError`: see ``served.py``."""
        folder = self._job.work
        with file_errors("write", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._require_output()
        with locked(folder / "manifest.json", "Wait for it or name another --work folder."):
            return self._run()

    def _require_output(self) -> None:
        """Refuse, before hours of work, an output that is not writable or is one of the inputs."""
        output, start = self._job.output, self._job.start
        read = [*shards(self._job.target), *([start] if start else [])]
        if output.exists() and any(map(output.samefile, read)):
            raise UsageError(f"the output {output} is one of the inputs", "Name another file.")
        require_writable(output)

    def _run(self) -> dict[str, Any]:
        with load_pair(
            self._job.target,
            NO_DRAFT,
            target_options=for_generating(self._options),
            chat_template=self._template,
            conversations=SEQUENCES,
        ) as pair:
            work = Work(self._job.work, self._identity(pair))
            with self._keeping(work):
                self._prepare(pair, work)
                ends = pair.vocabulary.end_tokens
        with self._keeping(work):
            self._learn(work, ends)
        return work.values

    @contextmanager
    def _keeping(self, work: Work) -> Iterator[None]:
        """Save what was done inside, however it ends, and say how to resume."""
        try:
            try:
                yield
            finally:
                work.save()
        except KeyboardInterrupt:
            kept = f"everything is kept in {self._job.work}"
            self._say(f"{kept}: the same command goes on from there")
            raise
        except OSError as error:
            problem = f"cannot write {error.filename or self._job.work}: {reason_of(error)}"
            hint = "Free some space, or make it writable: the same command goes on from there."
            raise DSparkError(problem, hint) from None

    def _identity(self, pair: Pair) -> dict[str, Any]:
        """What all runs must have in common."""
        template = hashlib.sha256(pair.template.source.encode()).hexdigest()[:16]
        start = self._job.start
        return {
            "target": file_stamp(self._header.path)[:2],
            "layers": list(self._shape.target_layers),
            "template": template,
            "draft to begin with": None if start is None else file_stamp(start)[:2],
        }

    def _prepare(self, pair: Pair, work: Work) -> None:
        """Generate and record conversations."""
        cost, source = seconds_a_token(pair), self._source(pair, work)
        spent, have, free = work.spent_on_data, work.tokens, disk_usage(self._job.work).free
        self._say(forecast(self._job, self._shape, cost, pair.target.size, have, spent, free))
        with counting(1, title="conversations", say=self._say) as show:
            recording = self._recording(work)
            Collector(pair, work, recording, self._job, self._shape, show).run(source)

    def _recording(self, work: Work) -> Recording:
        counts = [len(each.tokens) for each in work.conversations]
        layers, width = len(self._shape.target_layers), self._shape.width
        return Recording(self._job.work / "recorded", layers, width, counts)

    def _source(self, pair: Pair, work: Work) -> Source:
        talks, seed = work.conversations, self._job.seed
        if self._prompts is None:
            return OwnPrompts(pair.template, seed, len(talks))
        # An answer that was cut off early cannot be judged: it is asked for again.
        long = self._shape.block
        held = [each.prompt for each in talks if each.held and len(each.answer) > long]
        done = sum(not each.held for each in talks)
        longest = longest_prompt(pair)
        found = GivenPrompts(self._prompts, pair.template, seed, longest, held, done)
        if found.left_out:
            self._say(f"{counted(found.left_out, 'prompt')} of more than {longest} tokens left out")
        return found

    def _learn(self, work: Work, ends: tuple[int, ...]) -> None:
        import torch

        from dspark_gguf.train.learn import Learner

        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        job, shape = self._job, self._shape
        recording = self._recording(work)
        records: Recording | OnLine = recording
        count = len(recording)
        if not job.disk:
            model = Model(job.target, self._options)
            records, count = OnLine(model, shape, work.conversations), len(work.conversations)
        learner = Learner(
            work, records, count, shape, self._header, ends, job.start, self._recipe
        )  # fmt: skip
        found = learner.run(max(job.seconds - work.spent_on_data, 0.0), self._say)
        work.values["held_out"] = {"tokens_a_pass": found.tokens_a_pass, "right": found.shares}
        self._finish(work, learner)

    def _finish(self, work: Work, learner: Learner) -> None:
        """Fit the confidence head, write the file, and check it as served."""
        from dspark_gguf.train.confidence import fit_confidence
        from dspark_gguf.train.export import export
        from dspark_gguf.train.served import require_right, serve

        job = self._job
        ranking = fit_confidence(learner.network, learner.batches, learner.held)
        work.values["confidence"] = ranking and ranking._asdict()
        name = f"{self._header.path.stem} DSpark"
        file = learner.network, learner.target, job.output, job.type, name
        export(*file)
        with load_pair(
            job.target,
            job.output,
            target_options=self._options,
            draft_options=DraftOptions(threads=self._options.threads),
            chat_template=self._template,
        ) as pair:
            self._say("serving the draft on prompts that it has not seen")
            served = serve(pair, learner.network, learner.batches, learner.held)
            work.values["served"] = {
                "tokens_a_pass": served.tokens_a_pass,
                "as_trained": served.expected,
                "equal_first_guesses": served.equal,
                "blocks": len(served.anchors),
            }
            require_right(served, pair, learner.network, learner.batches)
        export(*file, served.calibration)


def require_libraries() -> None:
    """Raise a `UsageError` if a library of the extra `train` is missing."""
    for name in ("torch", "gguf"):
        if find_spec(name) is None:
            hint = 'Install what training needs: pip install "dspark-gguf[train]"'
            raise UsageError(f"training needs {name}, which is not installed", f"{hint}.")
