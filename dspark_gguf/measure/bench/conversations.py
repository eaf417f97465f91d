"""Throughput of several conversations in one pass, with drafts and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from dspark_gguf.batching import Batcher
from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench.plan import DEFAULT, PLAIN
from dspark_gguf.measure.bench.results import Figure, shown
from dspark_gguf.noise import Noise
from dspark_gguf.visible import text_table

#: The kinds of text whose answers repeat much of the prompt.
COPYING = ("summarising", "rewriting", "extraction", "code editing")
#: Decoding without drafts, and what one gets without options.
METHODS = {PLAIN: Speculation(mode="off", learn=False), DEFAULT: Speculation(learn=False)}

HEADER = """\
All conversations begin together, from an empty cache; measured is the time in which every one of
them answers, without the time to read the prompts. Plain batching and the default take turns.
x one: throughput over that of one conversation without drafts.
x plain: throughput of the default over plain batching of as many conversations in the same turn;
median over the turns, and what it lies between."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Tokens a second of a number of conversations, turn by turn."""

    group: str
    conversations: int
    speeds: dict[str, list[float]]  # by method

    @property
    def ratio(self) -> Figure:
        """The default over plain batching in the same turn."""
        pairs = zip(self.speeds[DEFAULT], self.speeds[PLAIN], strict=True)
        return Figure.of(ours / plain for ours, plain in pairs)

    @property
    def plain(self) -> float:
        """Tokens a second of plain batching."""
        return median(self.speeds[PLAIN])

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.group,
            "conversations": self.conversations,
            "tokens_per_second": {name: round(median(s), 3) for name, s in self.speeds.items()},
            "over_plain": self.ratio.as_dict(),
        }


def measure(
    pair: Pair,
    groups: Mapping[str, Sequence[Sequence[int]]],
    counts: Sequence[int],
    sampling: Sampling,
    tokens: int,
    repeats: int,
) -> Iterator[Cell]:
    """A cell for each kind of text, with its prompts' tokens, and number of conversations.

    With `sampling`, no answer may end early.
    """
    learned = {name: pair.copy_costs() for name in METHODS}
    for group, prompts in groups.items():
        _speed(pair, prompts[:1], METHODS[PLAIN], learned[PLAIN], sampling, 8, 0)
        for count in counts:
            speeds: dict[str, list[float]] = {name: [] for name in METHODS}
            for turn in range(repeats):
                first = turn * count
                some = [prompts[(first + k) % len(prompts)] for k in range(count)]
                for name in list(METHODS)[:: -1 if turn % 2 else 1]:
                    how = some, METHODS[name], learned[name]
                    speeds[name].append(_speed(pair, *how, sampling, tokens, first))
            yield Cell(group, count, speeds)


def _speed(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    speculation: Speculation,
    learned: Any,
    sampling: Sampling,
    tokens: int,
    first: int,
) -> float:
    """Tokens a second from when all answer until the first has ended."""
    batcher = Batcher(pair, speculation, parallel=len(prompts), learned=learned)
    batcher.clear()
    limits = Limits(max_tokens=tokens)
    requests = [
        batcher.submit(prompt, sampling, limits, draws=Noise.of(first + k))
        for k, prompt in enumerate(prompts)
    ]
    while not all(request.answer.tokens for request in requests):
        batcher.step()
        if any(request.is_over for request in requests):
            problem = f"an answer of {tokens} tokens ended before all {len(prompts)} had begun"
            raise UsageError(problem, "Use more --tokens, or fewer --conversations.")
    before, started = sum(len(request.answer.tokens) for request in requests), perf_counter()
    while not any(request.is_over for request in requests):
        batcher.step()
    seconds = perf_counter() - started
    return (sum(len(request.answer.tokens) for request in requests) - before) / seconds


def as_text(cells: Sequence[Cell]) -> str:
    """The table."""
    one = {cell.group: cell.plain for cell in cells if cell.conversations == 1}
    rows = []
    for cell in cells:
        over = cell.plain / one[cell.group] if cell.group in one else None
        ratio = cell.ratio
        rows.append([
            cell.group, str(cell.conversations), f"{cell.plain:.1f}", shown(over, ".2f"),
            f"{median(cell.speeds[DEFAULT]):.1f}",
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
        ])  # fmt: skip
    heads = ["text", "at once", "plain tok/s", "x one", "default tok/s", "x plain"]
    return text_table(heads, rows)
