"""The round loop on fakes: plain decoding's answers, clean caches at every yield."""

import numpy as np
import pytest

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.noise import Noise
from dspark_gguf.schedule import Fixed
from dspark_gguf.testing import ByteTokenizer, TableModel, agreeing_rows, random_rows, reciting_rows
from tests.fakes import Letters, World
from tests.worlds import RULES, finished, random_limits, random_prompt, random_world


def test_match_says_what_plain_decoding_says_with_the_same_seed():
    """200 worlds at temperature above 0: the same tokens, text and reason."""
    for case in range(200):
        rng = np.random.default_rng([7, case])
        speculation = Speculation(acceptance="match", draft_max=4, draft_min_prob=0.0)
        sampling = Sampling(temperature=0.9, top_k=5, seed=case)
        world = random_world(rng, sampling=sampling, speculation=speculation)
        prompt, limits = random_prompt(rng, world), random_limits(rng)
        expected = world.plain(prompt, limits, Noise.of(case))
        assert finished(world.decoder().generate(prompt, limits)) == expected


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_text(rule):
    """Also on caches that are warm, in every rule; another seed gives another text.

    20 tokens of 7: two seeds agree by chance with a probability far below 1e-6, and both are fixed.
    """
    rows = random_rows(7, seed=1, spread=1.0)
    world = World(rows, agreeing_rows(rows, 0.5), Letters(7))
    world.speculation = Speculation(acceptance=rule, draft_max=4, draft_min_prob=0.2)
    texts = []
    for seed in (3, 3, 4):
        world.sampling = Sampling(seed=seed, ignore_eos=True)
        decoder = world.decoder()
        twice = [decoder.answer([1, 2], Limits(max_tokens=20)).text for _ in range(2)]
        assert twice[0] == twice[1]
        texts.append(twice[0])
    assert texts[0] == texts[1] != texts[2]


class Recorder(Fixed):
    """Notes the limit of every plan."""

    def __init__(self, length):
        super().__init__(length)
        self.limits, self.rounds = [], []

    def plan(self, limit, behind=0, left=None):
        self.limits.append(limit)
        return super().plan(limit, behind)

    def observe(self, round):
        self.rounds.append(round)


@pytest.mark.parametrize(("budget", "n_ctx"), [(1, 40), (2, 40), (9, 40), (None, 9), (50, 9)])
def test_no_pass_is_longer_than_the_room(budget, n_ctx):
    """A plan's limit leaves a place for the target's own token; nothing past it is drafted."""
    rows = random_rows(6, seed=2)
    world = World(rows, rows, Letters(6), n_ctx=n_ctx)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    recorder = Recorder(64)
    decoder = world.decoder(stopping_rule=recorder)
    prompt, room = [1, 2, 3], min(budget or 99, n_ctx - 3)
    answer = decoder.answer(prompt, Limits(max_tokens=budget))
    assert recorder.limits == [room - 2] * (room > 1)
    assert [round.drafted for round in recorder.rounds] == [0, *[room - 2] * (room > 1)]
    # The prompt's pass yields the first token, a pass with drafts the rest.
    assert decoder.target.passes == [3, *[room - 1] * (room > 1)]
    assert len(decoder.drafter.cache.passes) == max(room - 2, 0)
    assert len(answer.tokens) == room
    assert answer.finish_reason == ("length" if room == budget else "context")


def test_a_full_context_ends_an_answer_and_a_full_prompt_is_refused():
    """A prompt may leave one place at least; an empty one is wrong use."""
    world = World(*[random_rows(6, seed=2)] * 2, Letters(6), n_ctx=5)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    answer = world.decoder().answer([1, 2, 3, 4])
    assert (len(answer.tokens), answer.finish_reason) == (1, "context")
    for prompt, error in (([1] * 5, ResourceError), ([1] * 6, ResourceError), ([], UsageError)):
        decoder = world.decoder()
        with pytest.raises(error):
            decoder.answer(prompt)
        assert decoder.target.passes == []


def reciting(prompt, answer, **changes):
    """A world that says `answer` after `prompt`, whose draft knows it too."""
    tokenizer = ByteTokenizer()
    tokens = tokenizer.tokenize(prompt + answer)
    rows = reciting_rows(tokens, tokenizer.n_vocab, tokenizer.end)
    return World(rows, rows, tokenizer, **changes)


@pytest.mark.parametrize("draft_max", [0, 1, 2, 3, 7, 30])
def test_characters_and_stops_across_tokens_and_rounds(draft_max):
    """Characters of up to four tokens, a stop string of 9 tokens: whole, and cut in its place."""
    speculation = Speculation(draft_max=draft_max)
    for stop, text in ((None, "naïve 🦜🦜 → 日本 END"), (("🦜 → 日",), "naïve 🦜")):
        world = reciting("Q:", "naïve 🦜🦜 → 日本 END", speculation=speculation)
        rounds = list(world.decoder().generate(list(b"Q:"), Limits(stop=stop or ())))
        assert "".join(round.text for round in rounds) == text
        assert rounds[-1].finish_reason == "stop"
        assert not any("\ufffd" in round.text for round in rounds)


def test_who_produced_what():
    """A perfect draft: each pass of k drafts yields k + 1 tokens, and the caches never restart."""
    world = reciting("ab", "cdefghij", speculation=Speculation(draft_max=3, mode="on"))
    decoder = world.decoder()
    answer = decoder.answer(list(b"ab"))
    assert decoder.target.passes == [2, 4, 4]
    assert decoder.drafter.cache.passes == [3, 1, 1, 2, 1, 1]
    assert (answer.tally.drafted, answer.tally.accepted) == (6, 6)
    assert answer.text == "cdefghij"


class Interrupted(TableModel):
    """Raises `Cancelled` in place of one pass."""

    countdown = float("inf")

    def decode(self, tokens, n_rows):
        self.countdown -= 1
        if self.countdown < 0:
            self.countdown = float("inf")
            raise Cancelled
        return super().decode(tokens, n_rows)


@pytest.mark.parametrize("whose", ["target", "draft"])
@pytest.mark.parametrize("passes", range(6))
def test_ctrl_c_in_any_pass_keeps_the_answer_so_far(whose, passes):
    """It ends with `cancelled` and a prefix of plain decoding; the next answer is right."""
    rng = np.random.default_rng(3)
    speculation = Speculation(draft_max=2, draft_min_prob=0.0)
    world = random_world(rng, n_ctx=40, draft_n_ctx=40, speculation=speculation)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    decoder = world.decoder()
    rows = world.target_rows if whose == "target" else world.draft_rows
    interrupted = Interrupted(rows, 40)
    interrupted.countdown = passes
    holder, name = (decoder, "target") if whose == "target" else (decoder.drafter, "cache")
    setattr(holder, name, interrupted)
    expected = world.plain([1, 2])
    tokens, text, reason = finished(decoder.generate([1, 2]))
    assert reason == "cancelled"
    assert tokens == expected[0][: len(tokens)]
    assert text == expected[1][: len(tokens)]  # a letter for a token
    assert finished(decoder.generate([1, 2])) == expected


def test_a_full_context_goes_on_after_a_shift():
    """The rest follows from the shorter tokens alone, through both caches."""
    world = World(*[random_rows(6, seed=2)] * 2, Letters(6), n_ctx=12)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    shorter = [4, 0, 4]
    for shifts in (0, 1, 2):
        left = [shorter] * shifts
        rounds = world.decoder().generate([1, 2], shift=lambda answer: left.pop() if left else None)  # noqa: B023
        tokens, _, reason = finished(rounds)
        assert tokens == world.plain([1, 2])[0] + shifts * world.plain(shorter)[0]
        assert reason == "context"


def test_ctrl_c_while_a_shift_is_read_loses_no_token():
    """Reading the shortened conversation again takes a while: the last round is out before it."""
    world = World(*[random_rows(6, seed=2)] * 2, Letters(6), n_ctx=12)
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    decoder = world.decoder()
    decoder.target = Interrupted(world.target_rows, 12)

    def shift(answer):
        decoder.target.countdown = 0
        return [4, 0, 4]

    tokens, text, reason = finished(decoder.generate([1, 2], shift=shift))
    assert (tokens, text, reason) == (*world.plain([1, 2])[:2], "cancelled")


def test_the_first_token_comes_with_the_prompts_pass():
    """One pass: of a new conversation over the prompt, of one that goes on over what is new."""
    world = World(*[random_rows(6, seed=2)] * 2, Letters(6))
    world.sampling = Sampling(temperature=0, ignore_eos=True)
    decoder = world.decoder()
    first = next(decoder.generate([1, 2, 3, 4]))
    assert decoder.target.passes == [4]
    assert (first.prompt_tokens, first.cached_tokens, len(first.tokens)) == (4, 0, 1)
    decoder.target.passes.clear()
    second = next(decoder.generate([1, 2, 3, 4, *first.tokens, 2]))
    assert decoder.target.passes == [2]
    assert (second.prompt_tokens, second.cached_tokens) == (6, 4)
