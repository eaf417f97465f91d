"""What training will take and what to expect of it, shown before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2
from pathlib import Path

from dspark_gguf.train.shape import Shape

#: Share of the time for generating and recording conversations. In our experiments, new data was
#: worth more than more steps.
DATA = 0.6
#: Time to record a token over time to generate it, measured on two cores.
_RECORDING = 0.7
#: One measurement: 183,000 tokens of a 135M target gave 1.67 tokens per pass on given prompts, and
#: each doubling of the data about this much more.
_KNOWN_TOKENS, _KNOWN, _DOUBLING = 183_000, 1.67, 0.12
_LEAST, _MAX = 1.05, 2.3
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, in plain values.

    Attributes:
        target: the target's file.
        output: the draft to write.
        work: the work folder.
        hours: time for all steps and all runs together.
        prompts: a file of prompts; None: the target writes them.
        disk: maximum gigabytes of recordings; 0: none, the target rereads while training.
        start: a draft to continue from.
        type: type of the draft's matrices, f16 or q8_0.
        max_tokens: maximum tokens of conversations; None: as many as time and disk allow.
        seed: random seed.

    """

    target: Path
    output: Path
    work: Path
    hours: float
    prompts: Path | None = None
    disk: float = 20.0
    start: Path | None = None
    type: str = "f16"
    max_tokens: int | None = None
    seed: int = 0

    @property
    def seconds(self) -> float:
        """Time for all steps."""
        return self.hours * 3600

    def room(self, shape: Shape) -> int:
        """Maximum tokens of conversations that `disk` and `max_tokens` allow."""
        most = max(1, int(self.disk * _GB / shape.token_bytes)) if self.disk else 10**12
        return min(most, self.max_tokens or most)


def forecast(
    job: Job,
    shape: Shape,
    token_seconds: float,
    target_bytes: int,
    have: int,
    spent: float = 0.0,
    free: float = inf,
) -> str:
    """A few lines: time, disk, memory, and tokens per pass to expect.

    `token_seconds` is the time per generated token here; `have` tokens exist already and took
    `spent` seconds; the disk has `free` bytes left.
    """
    left = max(0.0, DATA * job.seconds - spent)
    each = token_seconds * (1.0 + _RECORDING if job.disk else 1.0)
    tokens = min(job.room(shape), have + int(left / each))
    disk = (tokens * shape.token_bytes if job.disk else 0) + 12 * shape.parameters
    missing = disk - (have * shape.token_bytes if job.disk else 0) - free
    short = f", {missing / _GB:.1f} GB more than is free: give less --disk" * (missing > 0)
    # Weights, gradients and two averages in float32; three tables of logits; embeddings, twice for
    # a moment when the Markov head begins.
    logits = 512 * shape.block * min(shape.vocabulary, shape.n_vocab)
    memory = target_bytes + 16 * shape.parameters + 12 * logits + 10 * shape.n_vocab * shape.width
    lines = [
        f"time: {job.hours:g} h, of which {DATA:.0%} for about {tokens:,} tokens of conversations "
        f"({1 / each:.0f} tokens/s here), the rest to learn from them; it "
        "stops sooner if more no longer helps, and Ctrl-C keeps everything",
        f"disk: {disk / _GB:.1f} GB in {job.work}{short}; memory: {memory / _GB:.1f} GB",
        f"a draft of {shape.parameters / 1e6:.0f} M weights for {shape.block} tokens at once; "
        f"expect about {expected(tokens):.1f} tokens a pass, less on text of another kind "
        "(one experience with a target of 135M parameters)",
    ]
    return "\n".join(lines)


def expected(tokens: int) -> float:
    """Expected tokens per pass after training on so many tokens."""
    guess = _KNOWN + _DOUBLING * log2(max(tokens, 1) / _KNOWN_TOKENS)
    return min(_MAX, max(_LEAST, guess))
