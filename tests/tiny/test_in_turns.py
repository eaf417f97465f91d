"""Answers that use the same caches in turns: each says what it says alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import llama_cpp
import pytest

from dspark_gguf import Answer, Batcher, Decoder, DSparkLlama, Limits, Sampling, Speculation
from dspark_gguf.errors import UsageError
from tests.crowd import ALWAYS, COPIES, KINDS, LEARNED, pair_of, prompts, settings_of
from tests.tiny import test_strikes as strikes
from tests.tiny.test_drop_in_answers import ALWAYS as DRAFTS
from tests.tiny.test_drop_in_answers import EXACT, PROMPT, said

OFF, MAX = Speculation(mode="off"), Limits(max_tokens=24)
BOTH = strikes.PROMPT, [7, 3, 1, 2, 3, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("turns")


def in_turns(asked, rounds):
    """Answers of decoders to prompts, so many rounds of one before the next."""
    answers = [(decoder.generate(prompt, MAX), Answer()) for decoder, prompt in asked]
    while not all(answer.finish_reason for _, answer in answers):
        for rest, answer in answers:
            for round in islice(rest, rounds):
                answer.add(round)
    return [answer for _, answer in answers]


@pytest.mark.parametrize("kind", strikes.KINDS)
def test_two_answers_and_one_between(tiny_files, folder, kind):
    """With every drafter and memory: of one decoder, of two, and a short one after each round."""
    with strikes.pair_for(kind, tiny_files, folder) as pair:
        sampling, how = strikes.SAMPLING, strikes.speculation_for(kind, pair, folder)
        plain = Decoder.for_pair(pair, sampling, OFF)
        wanted = [plain.answer(prompt, MAX).tokens for prompt in BOTH]
        one, two = (Decoder.for_pair(pair, sampling, how) for _ in range(2))
        for other, rounds in ((one, 1), (one, 3), (two, 3)):
            answers = in_turns(zip((one, other), BOTH, strict=True), rounds)
            assert [answer.tokens for answer in answers] == wanted
        drafted = sum(answer.tally.drafted for answer in answers)
        assert drafted > 0 or kind == "cascade"  # which goes by the clock
        text = []
        for round in one.generate(BOTH[0], MAX):
            text += round.tokens
            two.answer([*BOTH[0], *text[:-1], 9], Limits(max_tokens=2))
        assert text == wanted[0]


def test_grammars_stay_where_their_answers_are(tiny_files, folder):
    """A draft under a grammar goes on with its own."""
    sampling = Sampling(temperature=0.8, seed=2, grammar='root ::= ("abc" | "xy" [0-9])+ "."')
    with strikes.pair_for("cascade", tiny_files, folder) as pair:
        wanted = [Decoder.for_pair(pair, sampling, OFF).answer(p, MAX).tokens for p in BOTH]
        decoder = Decoder.for_pair(pair, sampling, Speculation(**strikes.BY_HAND, drafter="model"))
        for rounds in (1, 2):
            answers = in_turns([(decoder, prompt) for prompt in BOTH], rounds)
            assert [answer.tokens for answer in answers] == wanted


@pytest.mark.parametrize("how", [ALWAYS, LEARNED, COPIES], ids=["fixed", "learned", "lookup"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_and_two_batches(files, alone, kind, how):
    """On one pair, step by step."""
    with pair_of(files, kind, 3) as pair:
        asked = [(prompt, settings_of(k, 0.8), 20) for k, prompt in enumerate(prompts(6))]
        batchers = [Batcher(pair, how, parallel=3) for _ in range(2)]
        requests = [
            batchers[k % 2].submit(prompt, sampling, Limits(max_tokens=most))
            for k, (prompt, sampling, most) in enumerate(asked)
        ]
        prompt, sampling = prompts(1, seed=9)[0], settings_of(3, 0.8)
        decoder = Decoder.for_pair(pair, sampling, how)
        text = []
        for round in decoder.generate(prompt, Limits(max_tokens=30)):
            text += round.tokens
            for batcher in batchers:
                batcher.step()
        for batcher in batchers:
            list(batcher)
        assert text == alone(kind).says(prompt, sampling, 30)
        for request, one in zip(requests, asked, strict=True):
            assert request.answer.tokens == alone(kind).says(*one)


@pytest.mark.parametrize("speculation", [DRAFTS, OFF], ids=["drafts", "off"])
def test_one_answer_of_a_llama_at_a_time(tiny_files, speculation):
    """A second one ends the first, which says so instead of nonsense."""
    llama = DSparkLlama(str(tiny_files.target), speculation=speculation, draft="none", **EXACT)
    with closing(llama):
        wanted = said(llama, 12, temp=0.0)
        first, left = (llama.generate(list(PROMPT), temp=0.0) for _ in range(2))
        next(left)
        assert [next(first) for _ in range(2)] == wanted[:2]
        second = llama.generate([5, 6, 7], temp=0.0)
        next(second)
        with pytest.raises(UsageError, match="began another answer"):
            next(first)
        left.close()
        next(second)
        assert said(llama, 12, temp=0.0) == wanted


@pytest.mark.parametrize("speculation", [DRAFTS, OFF], ids=["drafts", "off"])
def test_one_thread_at_a_time(tiny_files, speculation):
    """Where another computes: without a word, llama.cpp would end the process."""
    llama = DSparkLlama(str(tiny_files.target), speculation=speculation, draft="none", **EXACT)
    with closing(llama), ThreadPoolExecutor() as pool:
        wanted = said(llama, 12, temp=0.0)
        found = []

        def meanwhile(ids, logits):
            found.append(pool.submit(said, llama, 12, temp=0.0).exception())
            return False

        tokens = llama.generate(list(PROMPT), temp=0.0, stopping_criteria=meanwhile)
        assert [next(tokens) for _ in wanted] == wanted
        assert found
        assert all("one thread" in str(each) for each in found)
        assert pool.submit(said, llama, 12, temp=0.0).result() == wanted


def test_no_other_use_of_a_llama_within_an_answer(tiny_files):
    """What reads or loads something else ends the answer; what only looks or saves does not."""
    llama = DSparkLlama(str(tiny_files.target), speculation=DRAFTS, draft="none", **EXACT)
    with closing(llama):
        wanted = said(llama, 12, temp=0.0)
        state = llama.save_state()
        for use in (lambda: llama.eval([5]), llama.reset, lambda: llama.load_state(state)):
            tokens = llama.generate(list(PROMPT), temp=0.0)
            assert [next(tokens) for _ in range(3)] == wanted[:3]
            use()
            with pytest.raises(UsageError, match="while it answered"):
                next(tokens)
            assert said(llama, 12, temp=0.0) == wanted
        tokens = llama.generate(list(PROMPT), temp=0.0)
        assert [llama.save_state() and next(tokens) for _ in wanted] == wanted


def test_a_draft_that_is_used_before_and_between(tiny_files):
    """A ``Llama`` that has read something, and that reads something else between two answers."""
    draft = llama_cpp.Llama(str(tiny_files.draft), **EXACT)
    plain = llama_cpp.Llama(str(tiny_files.target), **EXACT)
    said(draft, 5, [9, 8, 7], temp=0.0)
    ours = DSparkLlama(str(tiny_files.target), draft=draft, speculation=DRAFTS, **EXACT)
    other = DSparkLlama(str(tiny_files.target), draft=draft, speculation=DRAFTS, **EXACT)
    wanted, also = said(plain, temp=0.0), said(draft, 9, [4, 4, 4], temp=0.0)
    accepted = []
    for _ in range(2):
        before = ours.tally.accepted
        assert said(ours, temp=0.0) == wanted
        accepted.append(ours.tally.accepted - before)
        assert said(other, 20, [3, 2, 1], temp=0.0) == said(plain, 20, [3, 2, 1], temp=0.0)
        assert said(draft, 9, [4, 4, 4], temp=0.0) == also
    assert accepted[0] == accepted[1] > 0
    for llama in (ours, other, plain, draft):
        llama.close()


@pytest.mark.parametrize("how", [OFF, ALWAYS], ids=["plain", "drafts"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_beside_a_batcher_that_has_all_cells(files, alone, kind, how):
    """It takes them from finished and running answers; these read again what they need."""
    long, own = [10 + k % 90 for k in range(150)], [110 + k % 90 for k in range(120)]
    seed = settings_of(3, 0.8)
    with pair_of(files, kind, 3, n_ctx=256) as pair:
        batcher = Batcher(pair, how, parallel=2)
        requests = [batcher.submit(long[k:], seed, Limits(max_tokens=30)) for k in (100, 0)]
        while not all(request.answer.tokens for request in requests):
            batcher.step()
        decoder = Decoder.for_pair(pair, seed, how)
        assert decoder.answer(own, MAX).tokens == alone(kind).says(own, seed, 24)
        list(batcher)
        for request in requests:
            assert request.answer.tokens == alone(kind).says(request.prompt, seed, 30)
