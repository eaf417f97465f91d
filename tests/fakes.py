"""What the tests of the loop and the drafters share: small worlds and plain decoding."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.dist import Dist
from dspark_gguf.draft import BlockDrafter, Drafter, ModelDrafter
from dspark_gguf.engine.protocol import Block
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.sampling import Sampler, margin
from dspark_gguf.schedule import make_stopping_rule
from dspark_gguf.testing import TableModel
from dspark_gguf.verify import make_rule


class Letters:
    """A vocabulary of `n` tokens: letters, and an end token last. Small, so things do happen."""

    def __init__(self, n):
        self.n_vocab, self.end_tokens = n, (n - 1,)

    def piece(self, token):
        return b"" if token in self.end_tokens else b"abcdefghijklmnop"[token : token + 1]


@dataclass
class World:
    """Rows of a target and a draft, a tokenizer, and how decoders on them are set."""

    target_rows: object
    draft_rows: object
    tokenizer: object
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0))
    speculation: Speculation = field(default_factory=Speculation)
    n_ctx: int = 64
    draft_n_ctx: int = 64
    drafter_kind: type = ModelDrafter
    shares_noise: bool = False

    def decoder(self, rule=None, stopping_rule=None):
        """A decoder with new caches."""
        sampler = Sampler(self.sampling, self.tokenizer.end_tokens)
        cache = TableModel(self.draft_rows, self.draft_n_ctx, max_rows=1)
        drafter = self.drafter_kind(cache, sampler, self.tokenizer)
        drafter.shares_noise = self.shares_noise
        return Decoder(
            target=TableModel(self.target_rows, self.n_ctx),
            tokenizer=self.tokenizer,
            drafter=drafter,
            stopping_rule=stopping_rule or make_stopping_rule(self.speculation),
            rule=rule or make_rule(self.speculation),
            sampler=sampler,
            seed=self.sampling.seed,
        )

    def plain(self, prompt, limits=None, draws=None):
        """Tokens, text and reason of plain decoding: no cache, no rounds, no draft."""
        limits = limits or Limits()
        sampler = Sampler(self.sampling, self.tokenizer.end_tokens)
        answer, text, reason = [], "", "length" if limits.max_tokens == 0 else None
        while reason is None:
            before = (*prompt, *answer)
            dist = sampler(self.target_rows(before), before)
            place = len(answer)
            answer.append(dist.top if draws is None else draws.at(place).token(dist))
            text += self.tokenizer.piece(answer[-1]).decode()
            places = [text.find(stop) for stop in limits.stop if stop in text]
            if answer[-1] in self.tokenizer.end_tokens or places:
                text, reason = text[: min(places, default=None)], "stop"
            elif len(answer) == limits.max_tokens:
                reason = "length"
            elif len(prompt) + len(answer) == self.n_ctx:
                reason = "context"
        return answer, text, reason


class TableBlock:
    """A block draft's memory over a table: rows behind what a target holds, chained or not."""

    n_ctx = 64

    def __init__(self, target, rows, max_drafts, is_chained=True, confidence=None):
        self.target, self.rows, self.confidence = target, rows, confidence
        self.max_drafts, self.is_chained = max_drafts, is_chained

    @property
    def length(self):
        return len(self.target.tokens)

    covered = length

    def is_ready(self, length):
        return length == self.length

    def begin(self, tokens):
        """Nothing is ever missed."""

    def opening(self, last, count=1):
        return [last]

    def decode(self, tokens, n_rows):
        start = before = (*self.target.tokens, *tokens)
        rows = []
        for k in range(n_rows):
            rows.append(self.rows(before))
            # Without a Markov head a row knows its place, not what stands before it.
            guess = int(rows[-1].argmax()) if self.is_chained else 0
            before = (*before, guess) if self.is_chained else (*start, *[0] * (k + 1))
        confidence = None if self.confidence is None else [self.confidence(row) for row in rows]
        return Block(rows, confidence)


@dataclass
class BlockWorld(World):
    """A world whose draft guesses blocks."""

    is_chained: bool = True
    confidence: object = None
    score: object = margin

    def decoder(self, rule=None, stopping_rule=None):
        """A decoder with new caches."""
        decoder = super().decoder(rule, stopping_rule)
        cache = TableBlock(decoder.target, self.draft_rows, 3, self.is_chained, self.confidence)
        decoder.drafter = BlockDrafter(
            cache, decoder.sampler, self.tokenizer, self.score, self.shares_noise
        )
        return decoder


def followed(decoder, prompt, rounds):
    """Pass `rounds` on and hold the caches to their promise at every yield."""
    committed, target, draft = list(prompt), decoder.target, decoder.drafter.cache
    for round in rounds:
        committed += round.tokens
        if round.verdict is None:  # no pass: a budget of no tokens
            yield round
            continue
        assert target.tokens == committed[:-1]
        assert draft.length < len(committed)
        assert draft.tokens == committed[: draft.length]
        yield round


def rows_of(cache, tokens):
    """A row for each of `tokens`, in one pass."""
    return cache.decode(tokens, len(tokens))


def draft_of(tokens, dists=None, scores=()):
    """A draft of one source, drawn from these dists or from no others."""
    tokens = tuple(tokens)
    dists = tuple(map(Dist.point, tokens)) if dists is None else tuple(dists)
    return Draft(Segment("model", tokens, dists, tuple(scores), (0.0,) * len(scores)))


def round_of(tokens, *, drafted=0, accepted=0, scores=(), seconds=(), caught_up=0, **facts):
    """A round whose draft of one source was right `accepted` times; its steps took `seconds`.

    Without `seconds` each score is that of a step that took no time.
    """
    guesses = (*tokens[:accepted], *[-1] * (drafted - accepted))
    steps = tuple(seconds) or (0.0,) * len(scores)
    dists = tuple(map(Dist.point, guesses))
    segment = Segment("model", guesses, dists, tuple(scores), steps, caught_up)
    verdict = Verdict(accepted, tokens[-1] if tokens else None)
    return Round(tuple(tokens), draft=Draft(segment), verdict=verdict, **facts)


class Scripted(Drafter):
    """Drafts the text that is known to come, wrong at a depth that changes from round to round.

    Args:
        text: prompt and answer of plain decoding.
        length: tokens of a draft.
        depths: of the wrong token in each draft; at `length` there is none.

    """

    def __init__(self, text, length, depths):
        self.text, self.length, self.depths = text, length, iter(depths)
        self.cache = None

    def restart(self, tokens, rng, grammar=None):
        """Nothing to prepare."""

    def propose(self, tokens, plan):
        count = min(plan.length, self.length)
        draft, wrong = list(self.text[len(tokens) : len(tokens) + count]), next(self.depths)
        if wrong < len(draft):
            draft[wrong] = (draft[wrong] + 1) % 250
        return draft_of(draft)

    def behind(self, tokens):
        return 0

    def observe(self, round):
        """Nothing to learn."""

    def trim(self, length):
        """Nothing to forget."""


def restore_stale(rollback, length):
    """Put the state of a cache's first mark in the place of the one after `length` tokens."""
    mark = rollback.checkpoints[0]
    data = mark.data.copy()
    head = data[:32].view(np.int32)
    head[head == mark.length - 1] = length - 1  # its position
    assert rollback._restore(replace(mark, length=length, data=data))


class FakeScreen:
    """Collects what a terminal would show."""

    on_terminal = False

    def __init__(self):
        self.answer, self.notes = "", []

    def write(self, text, dim=False):
        self.answer += text

    def end_answer(self):
        self.answer += "" if self.answer.endswith("\n") or not self.answer else "\n"

    def copy(self, text):
        return False

    def note(self, line):
        self.notes.append(line)

    error = note

    def table(self, rows):
        self.notes += [f"{name} {value}" for name, value in rows]


class FakeReader:
    """Answers with prepared lines."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def line(self, prompt, default=""):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def edited(self, text):
        return self.line("", default=text)

    def agreed(self, question):
        return self.line(question) == "y"
