"""A prompt that begins like another conversation goes on from what that one has read."""

from __future__ import annotations

import random

import pytest

from dspark_gguf import Batcher, Decoder, Limits, ModelOptions, Speculation, load_pair
from dspark_gguf.errors import DSparkError
from tests.crowd import (
    ALWAYS,
    COPIES,
    EXACT,
    KINDS,
    LEARNED,
    pair_of,
    settings_of,
)
from tests.tiny_gguf import IM_END
from tests.tiny_heads import Made, write_mtp

OFF = Speculation(mode="off")
START = IM_END - 1
SEED = settings_of(3, 0.8)


def words(count, seed):
    rng = random.Random(seed)
    return [rng.randrange(10, 250) for _ in range(count)]


def message(count, seed):
    return [START, *words(count, seed), IM_END]


SYSTEM = message(50, 1)


def conversation(*seeds):
    """The system message, further ones, and the beginning of an answer."""
    tokens = list(SYSTEM)
    for seed in seeds:
        tokens += message(30, seed)
    return [*tokens, START]


class Asked:
    """A batcher whose answers are held against those of each prompt alone."""

    def __init__(self, pair, alone, how, parallel=4):
        self.batcher, self.alone = Batcher(pair, how, parallel=parallel), alone
        self.requests = []

    def submit(self, prompt, most):
        request = self.batcher.submit(prompt, SEED, Limits(max_tokens=most))
        self.requests.append(request)
        return request

    def finish(self):
        list(self.batcher)
        for each in self.requests:
            text = self.alone.says(each.prompt, SEED, each.limits.max_tokens)
            assert each.answer.tokens == text


def lent(kind, prompt, other):
    """What a prompt can take over from another conversation."""
    common = next(k for k, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b)
    return common if kind == "removal" else len(SYSTEM)


@pytest.mark.parametrize("how", [OFF, ALWAYS, COPIES], ids=["plain", "drafts", "copies"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_system_message_is_read_once(files, alone, kind, how):
    first, second, third = conversation(2), conversation(3), conversation(4)
    with pair_of(files, kind, 3) as pair:
        asked = Asked(pair, alone(kind), how)
        finished = asked.submit(first, 12)
        asked.finish()
        assert finished.answer.cached_tokens == 0
        running = asked.submit(second, 40)
        for _ in range(6):
            asked.batcher.step()
        assert 0 < len(running.answer.tokens) < 40
        late = asked.submit(third, 12)
        asked.finish()
        assert running.answer.cached_tokens == lent(kind, second, first)
        assert late.answer.cached_tokens == lent(kind, third, second)
        # What was lent is still with the lender, which goes on.
        longer = [*first, *finished.answer.tokens, IM_END, *message(30, 5), START]
        again = asked.submit(longer, 12)
        asked.finish()
        assert again.answer.cached_tokens >= len(first) + 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_went_on_still_lends_its_first_messages(files, alone, kind):
    with pair_of(files, kind, 2) as pair:
        asked = Asked(pair, alone(kind), LEARNED, parallel=2)
        talk = conversation(2)
        for seed in range(10, 15):
            said = asked.submit(talk, 10)
            asked.finish()
            talk = [*talk, *said.answer.tokens, IM_END, *message(30, seed), START]
        running = asked.submit(talk, 30)
        for _ in range(4):
            asked.batcher.step()
        other = conversation(3)
        late = asked.submit(other, 10)
        asked.finish()
        assert running.answer.cached_tokens > len(talk) - 40
        assert late.answer.cached_tokens == lent(kind, other, talk)


@pytest.mark.parametrize("how", [OFF, ALWAYS], ids=["plain", "drafts"])
@pytest.mark.parametrize("kind", KINDS)
def test_of_prompts_that_come_together_one_reads_what_is_common(files, alone, kind, how):
    """There are no messages in these: where they part is seen before it is read."""
    common = words(70, 7)
    with pair_of(files, kind, 4) as pair:
        asked = Asked(pair, alone(kind), how)
        requests = [asked.submit([*common, 10 + k, *words(25, k)], 10 + k) for k in range(6)]
        asked.finish()
        cached = [each.answer.cached_tokens for each in requests]
        assert cached == [0, *[70] * 5]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_many_times_is_read_once(files, alone, kind, capfd):
    prompt = words(60, 8)
    with pair_of(files, kind, 3) as pair:
        asked = Asked(pair, alone(kind), OFF)
        capfd.readouterr()
        requests = [asked.submit(prompt, 8) for _ in range(5)]
        asked.finish()
        assert [each.answer.cached_tokens for each in requests] == [0, *[59] * 4]
    assert "state_read" not in capfd.readouterr().err  # llama.cpp's word on each that it takes over


def in_pieces(pair, alone, prompt):
    """A request that reads its prompt in pieces of 16 tokens, beside a running answer."""
    asked = Asked(pair, alone, OFF, parallel=3)
    asked.batcher._chunks.patience = 1e-6
    asked.submit(words(5, 1), 60)
    asked.batcher.step()
    return asked, asked.batcher.submit(prompt, SEED, Limits(max_tokens=5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_is_cancelled_keeps_nobody_waiting(files, alone, kind):
    common = words(200, 9)
    with pair_of(files, kind, 3) as pair:
        asked, reader = in_pieces(pair, alone(kind), [*common, 10])
        late = asked.submit([*common, 20], 5)
        for _ in range(3):
            asked.batcher.step()
        assert late.run is None  # it waits for the reader
        asked.batcher.cancel(reader)
        asked.finish()
        assert late.answer.tokens


@pytest.mark.parametrize("how", [OFF, ALWAYS, COPIES], ids=["plain", "drafts", "copies"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_cancelled_answer_has_read_is_lent(files, alone, kind, how):
    """As of a finished one: to a prompt that goes on from it, and to one that parts from it."""
    first, second = conversation(2), conversation(3)
    with pair_of(files, kind, 3) as pair:
        asked = Asked(pair, alone(kind), how)
        cancelled = asked.batcher.submit(first, SEED, Limits(max_tokens=60))
        while len(cancelled.answer.tokens) < 12:
            asked.batcher.step()
        asked.batcher.cancel(cancelled)
        other = asked.submit(second, 12)
        asked.finish()
        said = cancelled.answer.tokens
        assert said == alone(kind).says(first, SEED, 60)[: len(said)]
        longer = [*first, *said, IM_END, *message(30, 5), START]
        again = asked.submit(longer, 12)
        asked.finish()
        assert other.answer.cached_tokens == lent(kind, second, first)
        assert again.answer.cached_tokens >= len(first) + len(said) - 4  # three drafts may fall


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_cancelled_prompt_has_read_is_lent(files, alone, kind):
    """In the middle of its reading, by any memory: to one that goes on from there, and the next."""
    prompt = words(200, 9)
    with pair_of(files, kind, 3) as pair:
        asked, reader = in_pieces(pair, alone(kind), prompt)
        for _ in range(5):
            asked.batcher.step()
        read = reader.slot.target.length
        assert 30 < read < 150
        asked.batcher.cancel(reader)
        again = asked.submit(prompt, 5)
        for _ in range(2):
            asked.batcher.step()
        other = asked.submit([*prompt[:read], 10, 11, 12], 5)
        asked.finish()
        assert again.answer.cached_tokens == other.answer.cached_tokens == read


@pytest.mark.parametrize("how", [OFF, ALWAYS], ids=["plain", "drafts"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_failed_answer_has_read_is_lent(files, alone, kind, how):
    """Its own tokens are not worth keeping, but its cells are as good as any."""

    def fails(rows, tokens):
        raise DSparkError("no such token", "Take another.")

    first, second = conversation(2), conversation(3)
    with pair_of(files, kind, 3) as pair:
        asked = Asked(pair, alone(kind), how)
        failed = asked.batcher.submit(first, SEED, Limits(max_tokens=60))
        while len(failed.answer.tokens) < 12:
            asked.batcher.step()
        failed.watch = fails
        list(asked.batcher)
        assert failed.error.problem == "no such token"
        other = asked.submit(second, 12)
        asked.finish()
        assert other.answer.cached_tokens == lent(kind, second, first)


def test_a_memory_that_cannot_be_copied_in_parts_reads_all_itself(tmp_path):
    """llama.cpp would end the process."""
    path = write_mtp(tmp_path / "d.gguf", Made("deepseek4", "random", recurrent=0.2))
    options, few = ModelOptions(n_ctx=512, **EXACT), Limits(max_tokens=12)
    texts = [[*words(60, 3), *words(9, k)] for k in range(4)]
    with load_pair(path, "none", target_options=options) as pair:
        decoder = Decoder.for_pair(pair, SEED, OFF)
        wanted = [decoder.answer(text, few).tokens for text in texts]
    with load_pair(path, "none", target_options=options, conversations=3) as pair:
        batcher = Batcher(pair, OFF, parallel=3)
        for cached in (0, 60):
            requests = [batcher.submit(text, SEED, few) for text in texts]
            list(batcher)
            assert [each.answer.tokens for each in requests] == wanted
            assert requests[0].answer.cached_tokens >= cached
