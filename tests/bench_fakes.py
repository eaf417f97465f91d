"""What the tests of the bench share: a clock that models move, and made-up turns."""

from __future__ import annotations

from functools import partial

from dspark_gguf.config import Sampling
from dspark_gguf.measure.bench.results import Results
from dspark_gguf.measure.bench.turns import Sample, Task
from dspark_gguf.tally import Tally
from dspark_gguf.testing import ByteTokenizer, TableModel, agreeing_rows, random_rows
from tests.fakes import World


class Clock:
    """Seconds that pass only when a model works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class TimedModel(TableModel):
    """A pass takes `base` seconds, and `more` for each row after the first."""

    def __init__(self, rows, clock, base, more=0.0, **options):
        super().__init__(rows, **options)
        self.clock, self.base, self.more = clock, base, more

    def decode(self, tokens, n_rows):
        if len(tokens):
            self.clock.now += self.base + self.more * max(0, n_rows - 1)
        return super().decode(tokens, n_rows)


def timed_decoder(clock, speculation, agreement, temperature=0.0, seed=None):
    """A pass of the target takes 1 s and 0.1 s a row more, one of the draft 0.2 s."""
    rows = random_rows(ByteTokenizer.n_vocab, seed=1)
    world = World(rows, agreeing_rows(rows, agreement), ByteTokenizer())
    world.speculation = speculation
    world.sampling = Sampling(temperature=temperature, seed=seed, ignore_eos=True)
    decoder = world.decoder()
    decoder.target = TimedModel(rows, clock, 1.0, 0.1)
    if speculation.mode != "off":
        decoder.drafter.cache = TimedModel(world.draft_rows, clock, 0.2, max_rows=1)
    return decoder


def sample(method, domain, seconds, turn=0, temperature=0.0, tokens=10, **more):
    """`tokens` in so many seconds after a second of reading the prompt."""
    tally = Tally(
        rounds=tokens, plain_rounds=tokens, tokens=tokens, seconds=1.0 + seconds,
        prefill_seconds=1.0, target_seconds=0.9 * seconds, first_token_seconds=1.5, **more,
    )  # fmt: skip
    return Sample(method, Task(domain, (1, 2), temperature, tokens, turn), tally)


def results(speeds, peers=()):
    """Results from ``{(turn, domain): {method: seconds}}``."""
    methods = list(next(iter(speeds.values())))
    found = Results(methods, frozenset(peers))
    for (turn, domain), seconds in speeds.items():
        make = partial(sample, domain=domain, turn=turn)
        found.samples += [make(method, seconds=taken) for method, taken in seconds.items()]
    return found
