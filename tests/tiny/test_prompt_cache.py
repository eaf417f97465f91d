"""Finished conversations move to RAM while others answer, and go on from there."""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf import Batcher, Limits, Sampling, Speculation, slots
from dspark_gguf.engine.state import SavedCache
from dspark_gguf.prompt_cache import PromptCache, Saved
from tests.crowd import ALWAYS, KINDS, LEARNED, live, pair_of, prompts, settings_of
from tests.tiny.test_batching import SUCCESSOR
from tests.tiny.test_heads import files as heads
from tests.tiny.test_heads_everywhere import RIGHT_TOGETHER, crowd_of
from tests.tiny_cycle import CYCLE
from tests.tiny_dflash import Block, write_cycle_target, write_dflash

__all__ = ["heads"]  # a fixture
OFF = Speculation(mode="off")
SEED = settings_of(3, 0.8)


def says(batcher, prompt, most=10, sampling=SEED):
    request = batcher.submit(prompt, sampling, Limits(max_tokens=most))
    list(batcher)
    return request.answer


def in_turns(batcher, talks, sampling=SEED, most=10, added=()):
    """Three turns of each: what it was asked, and its answer; what it holds is not read again."""
    for turn in range(3):
        for k, talk in enumerate(talks):
            answer = says(batcher, talk, most, sampling)
            if turn:  # all but what the user has added, and the last token or three
                assert answer.cached_tokens >= len(talk) - max(len(added) + 1, 3)
            yield talk, answer
            talks[k] = [*talk, *answer.tokens, *added]


@pytest.mark.parametrize("how", [OFF, ALWAYS, LEARNED], ids=["plain", "drafts", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_conversations_than_slots_go_on_where_they_were(files, alone, kind, how):
    talks = [[30 + k, *one] for k, one in enumerate(prompts(5, shared=30))]
    with pair_of(files, kind, 2) as pair:
        for talk, answer in in_turns(Batcher(pair, how), talks, added=(40, 41, 42)):
            assert answer.tokens == alone(kind).says(talk, SEED, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_lives_in_full_cells(files, alone, kind):
    with pair_of(files, kind, 3, n_ctx=256) as pair:
        life = live(pair, alone(kind), 300)
    assert life.done > 10


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_idle_leaves_no_cells_to_those_that_run(files, kind):
    """They would be looked through in each pass; the memory of recurrent models has none."""
    talks = [[20 + k, *one] for k, one in enumerate(prompts(3, shared=30))]
    with pair_of(files, kind, 3) as pair:
        batcher = Batcher(pair, LEARNED)
        for talk in talks:
            says(batcher, talk)
        held = [cache.length > 0 for cache in pair.target_caches]
        assert sum(held) == (3 if kind == "replay" else 1)
        for talk in talks:
            assert says(batcher, [*talk, 5, 6]).cached_tokens >= len(talk) - 1


def test_cells_that_run_out_are_given_and_nothing_is_read_again(files, alone):
    talks = [[10 * k + n % 10 for n in range(100)] for k in range(2, 5)]
    with pair_of(files, "removal", 4, n_ctx=256) as pair:
        batcher = Batcher(pair, OFF)
        for talk in talks:
            says(batcher, talk)
        for talk in talks:
            answer = says(batcher, [*talk, 7])
            assert answer.cached_tokens == 100
            assert answer.tokens == alone("removal").says([*talk, 7], SEED, 10)


def test_a_prefix_is_copied_and_stays_for_others(files):
    start = [10 + k % 50 for k in range(60)]
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, OFF)
        says(batcher, start)
        for k in range(4):
            says(batcher, [99 + k] * 30)
        assert [says(batcher, [*start, 100 + k]).cached_tokens for k in range(3)] == [60] * 3
        assert says(batcher, [*start[:40], 100]).cached_tokens == 40
        # Of a long conversation that begins alike, a copy does not pay.
        says(batcher, [200] * 20 + [10 + k % 99 for k in range(200)])
        says(batcher, [99] * 30)
        says(batcher, [98] * 30)
        assert says(batcher, [200] * 20 + [5]).cached_tokens == 0


@pytest.mark.parametrize("name", RIGHT_TOGETHER)
def test_a_draft_that_follows_the_target_goes_on_with_it(heads, name):
    """All guesses are right, as behind a text that was read."""
    greedy = Sampling(temperature=0, ignore_eos=True)
    talks = [[*CYCLE[k : k + 20], *CYCLE[:3]] for k in range(4)]
    with crowd_of(heads, name, 2) as pair:
        for _, answer in in_turns(Batcher(pair, ALWAYS, parallel=2), talks, greedy, 20):
            assert answer.tally.drafted == answer.tally.accepted > 0


def test_a_block_draft_goes_on_with_its_target(tmp_path):
    target = write_cycle_target(tmp_path / "t.gguf", SUCCESSOR)
    draft = write_dflash(tmp_path / "d.gguf", Block(cycle=tuple(SUCCESSOR)))
    talks = [[10 + k, 20, *[30 + k] * 20] for k in range(4)]
    with pair_of({"llama": (target, draft)}, "removal", 2) as pair:
        greedy = Sampling(temperature=0)
        for talk, answer in in_turns(Batcher(pair, ALWAYS), talks, greedy, 20):
            said = [talk[-1], *answer.tokens]
            assert said[1:] == [SUCCESSOR[token] for token in said[:-1]]
            assert answer.tally.accepted > 10


def test_a_block_draft_that_gave_its_cells_away_has_nothing_left(tmp_path):
    """Also nothing that waits to be read: it would be taken for the first tokens."""
    target = write_cycle_target(tmp_path / "t.gguf", SUCCESSOR)
    draft = write_dflash(tmp_path / "d.gguf", Block(cycle=tuple(SUCCESSOR)))
    with pair_of({"llama": (target, draft)}, "removal", 2) as pair:
        batcher = Batcher(pair, ALWAYS)
        request = batcher.submit([10, 20, 30], Sampling(temperature=0), Limits(max_tokens=20))
        list(batcher)
        cache = pair.draft_cache(request.slot.number)
        assert cache.seen > 20
        assert batcher._requests.free_draft()
        assert cache.seen == 0
        says(batcher, [10, 20, 30, *request.answer.tokens, 40])
        cache.flush()
        assert cache.tokens == request.slot.target.tokens[: cache.length]


def test_a_conversation_that_does_not_fit_beside_the_others_is_read_anew(files, alone):
    long, other = [10 + k % 90 for k in range(150)], [110 + k % 90 for k in range(120)]
    with pair_of(files, "removal", 2, n_ctx=256) as pair:
        batcher = Batcher(pair, OFF)
        says(batcher, long)
        running = batcher.submit(other, SEED, Limits(max_tokens=60))
        for _ in range(5):
            batcher.step()
        answer = says(batcher, [*long, 7], 5)
        assert answer.tokens == alone("removal").says([*long, 7], SEED, 5)
        assert running.answer.tokens == alone("removal").says(other, SEED, 60)


def test_memory_for_one_conversation_is_enough_for_two_in_turns(files):
    """The one that goes back into a slot is not given up for the one that makes room for it."""
    talks = [[10 + k % 90 for k in range(60)], [110 + k % 90 for k in range(60)]]
    with pair_of(files, "removal", 1, n_ctx=256) as pair:
        batcher = Batcher(pair, OFF)
        saved = batcher._requests._slots._saved
        for turn in range(3):
            for k, talk in enumerate(talks):
                answer = says(batcher, talk)
                assert answer.cached_tokens >= (len(talk) - 3 if turn else 0)
                talks[k] = [*talk, *answer.tokens, 40]
            (other,) = saved._saved
            saved._free = lambda size=other.size: 5 * size


def saved(tokens, size):
    data = np.zeros(size, dtype=np.uint8)
    return Saved(SavedCache(tokens, data, (), True))


def test_what_is_kept_takes_a_quarter_of_the_free_memory_at_most():
    cache = PromptCache(lambda: 700)
    for k in range(6):
        cache.add(saved([k, k], 100))
    # 100 of 800, 200 of 900; with a third one 300 of 1,000 would be too much.
    assert cache.best([3, 3]) is None
    assert [cache.best([k, k]).target.tokens for k in (4, 5)] == [[4, 4], [5, 5]]


def test_a_longer_stage_of_a_conversation_takes_the_place_of_the_shorter_one():
    cache = PromptCache(lambda: 10**6)
    for tokens in ([1, 2], [1, 2, 3], [4]):
        cache.add(saved(tokens, 10))
    assert len(cache._saved) == 2
    assert cache.best([1, 2]).target.tokens == [1, 2, 3]
    cache.clear()
    assert cache.best([1, 2]) is None


def test_memory_that_is_short_ends_no_answer(files, monkeypatch):
    def short(self, most):
        raise MemoryError

    monkeypatch.setattr(slots.Slot, "save", short)
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, OFF)
        for k in range(4):
            assert len(says(batcher, [20 + k] * 30).tokens) == 10


def test_what_does_not_fit_is_not_even_copied(files, monkeypatch):
    """A copy that is dropped at once would take the memory all the same."""
    with pair_of(files, "removal", 2) as pair:
        batcher = Batcher(pair, OFF)
        batcher._requests._slots._saved._free = lambda: 1000
        monkeypatch.setattr("llama_cpp.llama_state_seq_get_data", None)
        for k in range(4):
            assert len(says(batcher, [20 + k] * 30).tokens) == 10
