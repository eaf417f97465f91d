"""CPU time of the controller in milliseconds per round, by length of the conversation.

    python scripts/measure_controller.py [--rounds 400] [--repeats 5]

The controller is everything outside the models: scheduling, drafting, sampling, verification, text.
So the models are lookup tables here, whose own time is subtracted. The logits depend on the last
six tokens, so that the text hardly repeats itself and a round has a few draft steps, as with real
models; in the rows called "copies" they depend on the last token alone, so that nearly everything
is copied by prompt lookup. The lengths take turns; each figure is the median / mean over the rounds
of all turns, then the mean number of draft tokens. With real models the figures would be hidden:
their passes take longer as the context grows, and evict the controller's data from the CPU caches.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from time import thread_time

import numpy as np

from dspark_gguf import Decoder, Limits, Sampling
from dspark_gguf.calibration import Calibration
from dspark_gguf.config import Speculation
from dspark_gguf.draft import Cascade, LookupDrafter, ModelDrafter
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.noise import Noise
from dspark_gguf.sampling import Sampler, margin
from dspark_gguf.schedule import Source, make_stopping_rule
from dspark_gguf.testing import ByteTokenizer
from dspark_gguf.verify import make_rule

LENGTHS = (500, 2000, 8000, 32000)
#: Number of last tokens that the logits depend on, and sampling.
SETTINGS = {
    "greedy": (6, Sampling(temperature=0, ignore_eos=True)),
    "greedy, copies": (1, Sampling(temperature=0, ignore_eos=True)),
    "sampled": (6, Sampling(ignore_eos=True)),
    "sampled, penalties": (6, Sampling(ignore_eos=True, repeat_penalty=1.1)),
    "sampled, penalties of all": (
        6, Sampling(ignore_eos=True, repeat_penalty=1.1, repeat_last_n=-1),
    ),
}  # fmt: skip


class Table:
    """A cache whose logits depend on the `last` tokens only: a step costs the same at any length.

    `seconds` is the CPU time of all its passes.
    """

    n_ctx = max_rows = 10**6

    def __init__(self, rows: np.ndarray, last: int) -> None:
        self.rows, self.n_vocab, self.last = rows, rows.shape[1], last
        self.tokens: list[int] = []
        self.seconds = 0.0

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return len(self.tokens)

    def restart(self, tokens: Sequence[int]) -> int:
        """Replace the contents by `tokens`; takes no time that counts."""
        self.tokens[:] = tokens
        return 0

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Replace the contents by `tokens`."""
        self.tokens[:] = tokens
        return len(tokens)

    def trim(self, length: int) -> None:
        """Remove the tokens after the first `length`."""
        del self.tokens[length:]

    def decode(self, tokens: Sequence[int], n_rows: int) -> np.ndarray:
        """Logits after each of the last `n_rows` tokens."""
        started, known = thread_time(), self.tokens
        known += tokens
        ends = range(len(known) - n_rows + 1, len(known) + 1)
        keys = [hash(tuple(known[end - self.last : end])) % len(self.rows) for end in ends]
        rows = self.rows[keys]
        self.seconds += thread_time() - started
        return rows


class Costs(LearnedCosts):
    """Learns from every round, as with real models, but from costs that are fixed.

    They vary randomly by 3 %, so that there is something to learn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._random, self.profiled = np.random.default_rng(0), 12
        self.add_profile(dict.fromkeys((1, 2, 3, 5, 9, 13, 33), 1.0), ())
        self.add_first_draft_step(1.0, 1)
        self.add_draft_step(1.0)

    def _taken(self, seconds: float) -> float:
        return seconds * float(1.0 + 0.03 * self._random.standard_normal())

    def add_pass(self, rows: int, seconds: float) -> None:
        """Ignores the measured `seconds`."""
        super().add_pass(rows, self._taken(0.95 + 0.05 * rows))

    def add_draft_step(self, seconds: float) -> None:
        """Ignores the measured `seconds`."""
        super().add_draft_step(self._taken(0.1))

    def add_first_draft_step(self, seconds: float, caught_up: int) -> None:
        """Ignores the measured `seconds`."""
        super().add_first_draft_step(self._taken(0.1), caught_up)


def decoder(last: int, sampling: Sampling) -> Decoder:
    """A target, a draft that is nearly the same, and prompt lookup, with the default scheduler."""
    rng, tokenizer = np.random.default_rng(0), ByteTokenizer()
    rows = (4 * rng.standard_normal((257, 257))).astype(np.float32)
    noisy = rows + rng.standard_normal(rows.shape).astype(np.float32)
    speculation = Speculation(acceptance="match")
    sampler = Sampler(sampling, tokenizer.end_tokens)
    looking = ModelDrafter(Table(noisy, last), sampler, tokenizer, margin, shares_noise=True)
    rule = make_stopping_rule(
        speculation,
        Costs(),
        Source("model", 12),
        Source("lookup", 64, Calibration.of_copies(), is_free=True),
    )
    drafter = Cascade(LookupDrafter(tokenizer), looking)
    return Decoder(
        Table(rows, last), tokenizer, drafter, rule, make_rule(speculation), sampler, seed=1
    )


def rounds(made: Decoder, length: int, count: int) -> Iterator[tuple[float, float]]:
    """Seconds outside the passes, and draft tokens, of each round except the first 20."""
    prompt = np.random.default_rng(length).integers(0, 250, length).tolist()
    tables = made.target, made.drafter.other.cache
    answer = made.generate(prompt, Limits(max_tokens=100 * count))
    for k in range(count + 20):
        started = thread_time() - sum(table.seconds for table in tables)
        round = next(answer)
        seconds = thread_time() - sum(table.seconds for table in tables) - started
        if k >= 20:
            yield seconds, round.drafted


def noise_milliseconds() -> float:
    """Milliseconds to draw with noise from the tokens that top-k leaves of 150,000."""
    row = np.random.default_rng(0).normal(0.0, 3.0, 150_000).astype(np.float32)
    dist, noise = Sampler(Sampling(top_p=1.0, min_p=0.0))(row, ()), Noise(1)
    taken = timeit.repeat(lambda: noise.at(5).scored(dist), number=1000, repeat=5)
    return min(taken)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print("median / mean ms per round, drafted".ljust(36), *(f"{each:>20}" for each in LENGTHS))
    for name, (last, sampling) in SETTINGS.items():
        taken: dict[int, list[tuple[float, float]]] = {length: [] for length in LENGTHS}
        for _ in range(asked.repeats):
            for length in LENGTHS:
                taken[length] += rounds(decoder(last, sampling), length, asked.rounds)
        figures = []
        for each in taken.values():
            seconds, drafted = zip(*each, strict=True)
            one = f"{1e3 * median(seconds):.3f} / {1e3 * fmean(seconds):.3f}, {fmean(drafted):.1f}"
            figures.append(f"{one:>20}")
        print(name.ljust(36), *figures)
    print(f"\nnoise of a row of 150,000 ids, default sampling: {noise_milliseconds():.3f} ms")


if __name__ == "__main__":
    main()
