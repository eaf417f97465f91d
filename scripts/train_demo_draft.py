"""Train a block draft for the demo model on one GPU, in minutes instead of nights.

    python scripts/train_demo_draft.py DRAFT.gguf --minutes 7

The same network, loss and file as ``dspark-gguf train``, but a twin of the target in torch
(``twin.py``) writes the conversations (``twin_talks.py``), thousands at once, and reads them again
in every step, so that nothing is recorded. ``configs/prompts`` only judges the result. The twin
knows the architecture llama, and the whole of it must fit on the GPU as float16. What it reached:
docs/training.md.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import torch
from torch import Tensor
from twin import Twin
from twin_talks import Talks

from dspark_gguf.catalog import NO_DRAFT, load_pair
from dspark_gguf.catalog.demo import NAME, source_model
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.train.batches import Batch, Batches
from dspark_gguf.train.evaluate import evaluate
from dspark_gguf.train.export import export
from dspark_gguf.train.fit import Fit, feature_scale
from dspark_gguf.train.network import Anchors, Network
from dspark_gguf.train.recipe import Recipe
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.start import new_network
from dspark_gguf.train.vocabulary import choose_known
from dspark_gguf.train.weights import Weights
from dspark_gguf.train.work import LIKELY, Conversation, Recorded

#: Guesses of a block; tokens of an answer that judges.
BLOCK, JUDGED = 8, 96
#: Conversations in a step, and anchors in each of them.
TALKS, EACH = 48, 64
#: A control token that no conversation contains.
MASK = 7
PROMPTS = Path(__file__).parents[1] / "configs" / "prompts"


class Reader:
    """What the twin makes of conversations: layer inputs, and the likeliest tokens."""

    def __init__(self, twin: Twin, layers: tuple[int, ...], known: Tensor | None = None) -> None:
        self._twin, self._layers = twin, layers
        self._head = twin.head if known is None else twin.head[known]

    def batch(self, talks: list[Conversation]) -> Batch:
        """Random anchors in every conversation; labels are indices into `known`."""
        twin, device = self._twin, self._twin.device
        tokens = twin.padded([talk.tokens for talk in talks], 0)
        lengths = torch.tensor([len(talk.tokens) for talk in talks], device=device)
        first = torch.tensor([max(1, talk.start - 1) for talk in talks], device=device)
        features, last = twin.read(tokens, self._layers)
        labels, chances = self._likely(last)
        share = torch.rand(len(talks), EACH, device=device)
        places = (first[:, None] + share * (lengths - first)[:, None]).long()
        rows = places[..., None] + torch.arange(BLOCK, device=device)
        valid = rows < lengths[:, None, None]
        rows = rows.minimum(lengths[:, None, None] - 1)
        talk = torch.arange(len(talks), device=device)[:, None, None]
        anchors, found = Anchors(features, places, tokens.gather(1, places)), labels[talk, rows]
        return Batch(
            anchors, tokens[talk, rows], found, chances[talk, rows], found[..., 0], valid
        )  # fmt: skip

    def counted(self, talks: list[Conversation]) -> Recorded:
        """The likeliest tokens of the answers alone."""
        tokens = self._twin.padded([talk.tokens for talk in talks], 0)
        ids, chances = self._likely(self._twin.read(tokens, ())[1])
        written = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        for row, talk in zip(written, talks, strict=True):
            row[talk.start - 1 : len(talk.tokens)] = True
        return recorded(torch.empty(0), ids[written], chances[written])

    def record(self, talk: Conversation) -> Recorded:
        """As the package records it."""
        features, last = self._twin.read(self._twin.padded([talk.tokens], 0), self._layers)
        ids, chances = self._likely(last)
        return recorded(features[0], ids[0], chances[0])

    def _likely(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Likeliest tokens [c, n, 16] and their probabilities."""
        ids = torch.empty((*last.shape[:2], LIKELY), dtype=torch.long, device=last.device)
        chances = torch.empty(ids.shape, device=last.device)
        for some in torch.arange(len(last), device=last.device).split(16):  # bounded memory
            whole = (last[some] @ self._twin.head.T).float().logsumexp(-1, keepdim=True)
            best, ids[some] = (last[some] @ self._head.T).float().topk(LIKELY)
            chances[some] = (best - whole).exp()
        return ids, chances


def recorded(features: Tensor, ids: Tensor, chances: Tensor) -> Recorded:
    """A recording in the package's types."""
    return Recorded(
        features.half().cpu().numpy(), ids.int().cpu().numpy(), chances.log().half().cpu().numpy()
    )


def held_out(talks: Talks, count: int) -> dict[str, list[Conversation]]:
    """Greedy answers to prompts of its own kind and, by kind of text, to ``configs/prompts``."""
    own = [talk.prompt for talk in talks.round(count, []) if len(talk.answer) > BLOCK]
    found = {"held out": talks.answer(own, [0.0] * len(own))}
    asked: dict[str, list[list[int]]] = {}
    for path in (PROMPTS / "default.jsonl", PROMPTS / "copying.jsonl"):
        for each in map(json.loads, path.read_text("utf-8").splitlines()):
            asked.setdefault(each["domain"], []).append(talks.encode(each["prompt"]))
    return found | {
        kind: talks.answer(some, [0.0] * len(some), JUDGED) for kind, some in asked.items()
    }


class Judge:
    """Tokens per pass on conversations of several kinds, as the package counts them."""

    def __init__(self, fit: Fit, reader: Reader, kinds: dict[str, list[Conversation]]) -> None:
        self._fit, network = fit, fit.network
        sizes = BLOCK, network.known, network.shape.n_vocab, fit.device
        self._batches = {
            kind: Batches(talks, [reader.record(talk) for talk in talks], *sizes)
            for kind, talks in kinds.items()
        }

    def says(self, kind: str) -> str:
        """In words."""
        batches = self._batches[kind]
        ks = range(len(batches.conversations))
        found = evaluate(self._fit.network, batches, ks, self._fit.autocast)
        return f"{kind}: {found.tokens_a_pass:.3f} tokens a pass {found.shares}"


def shuffled(store: list[Conversation], rng: random.Random) -> Iterator[list[Conversation]]:
    """Conversations for each step, of about the same length."""
    while True:
        some = rng.sample(store, min(len(store), 64 * TALKS))
        some.sort(key=lambda talk: len(talk.tokens))
        steps = [some[k : k + TALKS] for k in range(0, len(some), TALKS)]
        rng.shuffle(steps)
        yield from steps


@click.command(help=__doc__)
@click.argument("output", type=Path)
@click.option("--minutes", default=7.0, help="For all of it.")
@click.option("--data", default=0.28, help="Share of the time for writing conversations.")
@click.option("--together", default=3072, help="Conversations written at once: 23 KB a token.")
@click.option("--held", default=64, help="Conversations held out.")
@click.option("--seed", default=0)
def main(
    output: Path, minutes: float, data: float, together: int, held: int, seed: int
) -> None:  # fmt: skip
    """Write conversations, train on them, judge the draft, and write it."""
    began, device = perf_counter(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)

    def spent() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (perf_counter() - began) / (60 * minutes)

    def say(text: str) -> None:
        click.echo(f"{spent() * minutes:5.1f} min  {text}")

    twin, rng, store = Twin(source_model(), device), random.Random(seed), list[Conversation]()
    with load_pair(source_model(), NO_DRAFT) as pair:  # for its tokenizer
        talks = Talks(twin, pair.template, seed)
        kinds = held_out(talks, held)
        while not store or spent() < data:
            old = rng.sample(store, min(len(store), together // 5))
            store += talks.round(together, [each for each in old if len(each.tokens) < 300])
            written = sum(len(talk.answer) for talk in store)
            say(f"{len(store):,} conversations, {written:,} tokens of answers")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the K/V caches of writing
    fit = new_fit(twin, store, device, seed)
    layers, start = fit.network.shape.target_layers, spent()
    reader, judge = Reader(twin, layers, fit.network.known), Judge(fit, Reader(twin, layers), kinds)
    for some in shuffled(store, rng):
        if fit.step % 20 == 0:  # the clock waits for the GPU
            if (now := spent()) >= 1.0:
                break
            done = (now - start) / (1.0 - start)
        fit.learn(reader.batch(some), done)
        if fit.step % 500 == 0:
            say(f"{fit.step} steps, {fit.seen:,} blocks; {judge.says('held out')}")
    for kind in kinds:
        say(judge.says(kind))
    export(fit.network, Weights(source_model()), output, "f16", f"{NAME} DSpark")


def new_fit(twin: Twin, store: list[Conversation], device: torch.device, seed: int) -> Fit:
    """An untrained draft, with the vocabulary and the scale of inputs of these conversations."""
    header, weights = read_header(source_model()), Weights(source_model())
    shape = replace(Shape.of_target(header), block=BLOCK)
    whole = Reader(twin, shape.target_layers)
    scale = feature_scale([whole.record(talk).features for talk in store[-100:]])
    counted = (whole.counted(store[k : k + 64]) for k in range(0, min(len(store), 8192), 64))
    known, share = choose_known(counted, header.n_vocab, shape.vocabulary)
    click.echo(f"{len(known):,} tokens have {share:.2%} of the target's probability")
    ids = torch.from_numpy(np.asarray(known))
    network: Network = new_network(shape, weights, header.architecture, ids, MASK, scale)
    recipe = Recipe(
        rate=1.5e-3, head_rate=2.5e-3, warm=100, cooling=0.4, decay=0.85, dropout=0.0, seed=seed
    )
    return Fit(network, recipe, device)


if __name__ == "__main__":
    main()
