"""Many conversations in one pass say what each says alone, token for token."""

from __future__ import annotations

import pytest

from dspark_gguf import (
    Batcher,
    Limits,
    ModelOptions,
    Sampling,
    Speculation,
    load_pair,
    together,
)
from dspark_gguf.config import MAX_ROWS, DraftOptions
from dspark_gguf.errors import Cancelled, ResourceError, UsageError
from dspark_gguf.noise import Noise
from dspark_gguf.schedule import SharedCosts
from tests.crowd import (
    ALWAYS,
    COPIES,
    EXACT,
    KINDS,
    LEARNED,
    LIVELY,
    live,
    pair_of,
    prompts,
    settings_of,
)
from tests.tiny_dflash import N_TOKENS, Block, write_cycle_target, write_dflash

#: What the cycle target says after each token.
SUCCESSOR = [(7 * token + 3) % 256 for token in range(N_TOKENS)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("how", [ALWAYS, LEARNED, COPIES], ids=["fixed", "learned", "lookup"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_text_is_that_of_the_conversation_alone(files, alone, kind, how, temperature):
    with pair_of(files, kind, 4) as pair:
        batcher = Batcher(pair, how, parallel=4)
        wanted = [
            (prompt, settings_of(k, temperature), 10 + 5 * (k % 3))
            for k, prompt in enumerate(prompts(9))
        ]
        requests = [
            batcher.submit(prompt, sampling, Limits(max_tokens=most))
            for prompt, sampling, most in wanted
        ]
        max_running = 0
        for _ in iter(lambda: batcher.step(), []):
            max_running = max(max_running, batcher.running)
        assert max_running == 4
        for request, one in zip(requests, wanted, strict=True):
            assert request.answer.tokens == alone(kind).says(*one)
            assert request.answer.finish_reason == "length"
        if how is ALWAYS:
            assert sum(request.answer.tally.accepted for request in requests) > 0


@pytest.mark.parametrize("kind", ["removal", "replay", "snapshots", "window"])
def test_joins_leaves_cancels_and_full_cells_change_no_text(files, alone, kind):
    with pair_of(files, kind, 3, n_ctx=256) as pair:
        life = live(pair, alone(kind), 300)
    assert life.done > 10
    assert life.cancelled > 0


def test_requests_that_do_not_fit_together_wait_or_are_read_again(files, alone):
    with pair_of(files, "removal", 4, n_ctx=256) as pair:
        batcher = Batcher(pair, LEARNED, parallel=4)
        wanted = [(prompt, settings_of(k, 0.8), 120) for k, prompt in enumerate(prompts(6))]
        requests = [batcher.submit(p, s, Limits(max_tokens=most)) for p, s, most in wanted]
        assert {request.key for request, _ in batcher} == {None}
        for request, one in zip(requests, wanted, strict=True):
            assert request.answer.tokens == alone("removal").says(*one)


def test_an_answer_that_fills_all_cells_alone_ends_with_context(files):
    with pair_of(files, "removal", 2, n_ctx=256, draft=False) as pair:
        batcher = Batcher(pair, COPIES)
        request = batcher.submit([5] * 20, settings_of(1, 0.8))
        other = batcher.submit([6] * 20, settings_of(1, 0.8))
        list(batcher)
        assert [each.answer.finish_reason for each in (request, other)] == ["context"] * 2
        assert len(request.answer.tokens) == len(other.answer.tokens) == 256 - 20


def test_a_prefix_is_read_once(files):
    with pair_of(files, "removal", 4) as pair:
        batcher = Batcher(pair, LEARNED)
        texts = prompts(4, shared=100)
        first = batcher.submit(texts[0], settings_of(0, 0.8), Limits(max_tokens=20))
        list(batcher)
        assert first.answer.cached_tokens == 0
        rest = [batcher.submit(p, settings_of(0, 0.8), Limits(max_tokens=3)) for p in texts[1:]]
        list(batcher)
        assert all(each.answer.cached_tokens >= 100 for each in rest)
        # A conversation that goes on finds its own answer.
        longer = [*texts[0], *first.answer.tokens, 40, 41]
        again = batcher.submit(longer, settings_of(0, 0.8), Limits(max_tokens=3))
        list(batcher)
        assert again.answer.cached_tokens >= len(texts[0]) + 15


def test_a_draft_that_does_not_pay_in_the_pass_is_not_verified(tmp_path, monkeypatch):
    """Not even a single token of it."""
    asked = []

    def none_pays(survivals, *rest):
        asked.append(sum(map(len, survivals)))
        return [0] * len(survivals)

    monkeypatch.setattr(together, "allot", none_pays)
    target = write_cycle_target(tmp_path / "target.gguf", SUCCESSOR)
    options = ModelOptions(n_ctx=1024, **EXACT)
    with load_pair(target, None, target_options=options, conversations=3) as pair:
        batcher = Batcher(pair, COPIES, parallel=3)
        prompt = [30]
        while len(prompt) < 200:
            prompt.append(SUCCESSOR[prompt[-1]])
        limits = Limits(max_tokens=40)
        requests = [batcher.submit(prompt, Sampling(temperature=0), limits) for _ in range(3)]
        assert {round.drafted for _, round in batcher} == {0}
        assert all(len(request.answer.tokens) == 40 for request in requests)
    assert sum(asked) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_prompt_does_not_wait_for_a_long_one_nor_it_for_ever(files, alone, kind):
    long, short = [10 + n % 99 for n in range(400)], [[20 + k, *range(60, 95)] for k in range(40)]
    with pair_of(files, kind, 4) as pair:
        batcher = Batcher(pair, LEARNED, parallel=4, patience=1e-6)
        seed = settings_of(1, 0.8)
        batcher.submit([5, 6, 7], seed, Limits(max_tokens=200))
        batcher.step()
        first = batcher.submit(long, seed, Limits(max_tokens=1))
        ended = []
        later = [batcher.submit(prompt, seed, Limits(max_tokens=1)) for prompt in short]
        for request, _ in batcher:
            if request.is_over and request not in ended:
                ended.append(request)
        # The long one takes 25 pieces of 16 tokens, every other pass; the short ones three each.
        assert ended.index(later[0]) < ended.index(first) < ended.index(later[-1])
        assert first.answer.tokens == alone(kind).says(long, seed, 1)


def test_block_drafts_are_shared_too(tmp_path):
    target = write_cycle_target(tmp_path / "target.gguf", SUCCESSOR)
    block = write_dflash(tmp_path / "block.gguf", Block(cycle=tuple(SUCCESSOR)))
    exact = {"n_ctx": 512, **EXACT}
    with load_pair(
        target, block, target_options=ModelOptions(**exact), draft_options=DraftOptions(**EXACT),
        conversations=3,
    ) as pair:  # fmt: skip
        always = Speculation(mode="on", draft_min_prob=0.0, draft_max=4, learn=False)
        batcher = Batcher(pair, always, parallel=3)
        requests = [
            batcher.submit([10 + k, 20, 30 + k], Sampling(temperature=0), Limits(max_tokens=40))
            for k in range(5)
        ]
        list(batcher)
        for k, request in enumerate(requests):
            text = [30 + k]
            while len(text) <= 40:
                text.append(SUCCESSOR[text[-1]])
            assert request.answer.tokens == text[1:]
            assert request.answer.tally.accepted > 20


def test_blocks_of_different_lengths_in_a_pass(tmp_path):
    """Answers that are about to end want shorter ones; every guess is right all the same.

    llama.cpp mixes up blocks of two and four tokens, and ends the process over two and three.
    """
    target = write_cycle_target(tmp_path / "target.gguf", SUCCESSOR)
    block = write_dflash(tmp_path / "block.gguf", Block(cycle=tuple(SUCCESSOR)))
    options = {"target_options": ModelOptions(n_ctx=512, **EXACT)}
    with load_pair(
        target, block, draft_options=DraftOptions(**EXACT), conversations=2, **options
    ) as pair:
        always = Speculation(mode="on", draft_min_prob=0.0, draft_max=4, learn=False)
        batcher = Batcher(pair, always, parallel=2)
        for lengths in ((4, 6), (4, 5, 9, 3, 20)):
            requests = [
                batcher.submit([10 + k, 20, 30 + k], Sampling(temperature=0), Limits(max_tokens=n))
                for k, n in enumerate(lengths)
            ]
            list(batcher)
            for request in requests:
                tally = request.answer.tally
                assert tally.drafted == tally.accepted > 0


def test_the_first_block_after_a_prompt_is_no_usual_one(tmp_path, monkeypatch):
    """It reads what the target read of the prompt, and that is no part of its price."""
    seen = []
    monkeypatch.setattr(SharedCosts, "see_draft_step", lambda self, *args: seen.append(args))
    target = write_cycle_target(tmp_path / "target.gguf", SUCCESSOR)
    block = write_dflash(tmp_path / "block.gguf", Block(cycle=tuple(SUCCESSOR)))
    exact = {"target_options": ModelOptions(n_ctx=512, **EXACT)}
    with load_pair(target, block, draft_options=DraftOptions(**EXACT), **exact) as pair:
        always = Speculation(mode="on", draft_min_prob=0.0, draft_max=4, learn=False)
        batcher = Batcher(pair, always)
        batcher.submit(list(range(10, 110)), Sampling(temperature=0), Limits(max_tokens=12))
        list(batcher)
    first, *others = [longest for _, longest, *_ in seen]
    assert 90 < first <= 100
    assert set(others) == {1}


def test_no_more_conversations_than_a_pass_has_rows(files):
    """llama.cpp would end the process at the first pass of all."""
    with pair_of(files, "removal", 500, draft=False) as pair:
        assert len(pair.target_caches) == MAX_ROWS
        batcher = Batcher(pair, COPIES, parallel=500)
        requests = [
            batcher.submit([5, 6, 7], Sampling(temperature=0), Limits(max_tokens=3))
            for _ in range(MAX_ROWS + 2)
        ]
        list(batcher)
        assert all(request.answer.finish_reason for request in requests)


def test_a_grammar_holds_for_its_own_request_alone(files):
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, LEARNED)
        bound = Sampling(temperature=0.8, seed=1, grammar='root ::= "yes" | "no"')
        said = batcher.submit([30] * 5, bound, Limits(max_tokens=10))
        free = batcher.submit([30] * 5, settings_of(1, 0.8), Limits(max_tokens=10))
        list(batcher)
        assert said.answer.text in ("yes", "no")
        assert len(free.answer.tokens) == 10


def test_what_cannot_be_answered_is_refused_and_harms_nobody(files):
    with pair_of(files, "removal", 2, n_ctx=256) as pair:
        batcher = Batcher(pair, LEARNED)
        with pytest.raises(UsageError, match="empty"):
            batcher.submit([])
        with pytest.raises(ResourceError, match="leaves no room"):
            batcher.submit([5] * 300)
        with pytest.raises(UsageError, match="logit_bias"):
            batcher.submit([5], Sampling(logit_bias={10**6: 1.0}))
        nothing = batcher.submit([5], settings_of(1, 0.8), Limits(max_tokens=0))
        good = batcher.submit([5], settings_of(1, 0.8), Limits(max_tokens=4), key="good")
        keys = [request.key for request, _ in batcher]
        assert nothing.answer.finish_reason == "length"
        assert not nothing.answer.tokens
        assert len(good.answer.tokens) == 4
        assert "good" in keys


def test_an_interrupt_ends_the_step_and_leaves_all_caches_right(files, alone):
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, LEARNED)
        wanted = [(prompt, settings_of(k, 0.8), 30) for k, prompt in enumerate(prompts(2))]
        requests = [batcher.submit(p, s, Limits(max_tokens=most)) for p, s, most in wanted]
        for _ in range(5):
            batcher.step()
        pair.interrupt.set()
        with pytest.raises(Cancelled):
            batcher.step()
        pair.interrupt.clear()
        list(batcher)
        for request, one in zip(requests, wanted, strict=True):
            assert request.answer.tokens == alone("removal").says(*one)


def test_the_randomness_of_an_answer_can_be_given(files, alone):
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, LEARNED)
        sampling = Sampling(temperature=0.8, **LIVELY)
        one, two = (
            batcher.submit([7, 8, 9], sampling, Limits(max_tokens=12), draws=Noise.of(3))
            for _ in range(2)
        )
        list(batcher)
        seeded = settings_of(3, 0.8)
        assert one.answer.tokens == two.answer.tokens
        assert one.answer.tokens == alone("removal").says([7, 8, 9], seeded, 12)
