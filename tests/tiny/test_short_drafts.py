"""A draft with less context than its conversations need together: some are not drafted for."""

from __future__ import annotations

import pytest

from dspark_gguf import Batcher, Limits, ModelOptions, load_pair
from dspark_gguf.config import DraftOptions
from tests.crowd import ALWAYS, EXACT, live, settings_of
from tests.tiny.test_lent_prefixes import words


def counted(cache):
    """Fills with the tokens of each pass."""
    decode, seen = cache.context.decode, []

    def watched(batch):
        decode(batch)
        seen.append(batch.n_tokens)

    cache.context.decode = watched
    return seen


@pytest.mark.parametrize("n_ctx", [256, 400])
def test_they_do_not_push_each_other_out(files, alone, n_ctx):
    """Nothing is read twice, whoever began first is drafted for, and in the end everybody."""
    target, draft = files["llama"]
    texts = [words(130 + k, k) for k in range(4)]
    with load_pair(
        target, draft, target_options=ModelOptions(n_ctx=1024, **EXACT),
        draft_options=DraftOptions(n_ctx=n_ctx, **EXACT), conversations=4,
    ) as pair:  # fmt: skip
        pair.draft_cache()
        batcher = Batcher(pair, ALWAYS, parallel=4)
        reads = [counted(cache) for cache in pair.caches.values()]
        requests = [
            batcher.submit(text, settings_of(3, 0.8), Limits(max_tokens=30 + 20 * k))
            for k, text in enumerate(texts)
        ]
        verified = sum(1 + round.drafted for _, round in batcher)
        first, *_, last = requests
        assert first.answer.tally.drafted > 15
        assert last.answer.tally.drafted > 5
        for request in requests:
            text = alone("removal").says(
                request.prompt, settings_of(3, 0.8), request.limits.max_tokens
            )
            assert request.answer.tokens == text
            assert not pair.draft_cache(request.slot.number).is_crowded
        prompts, answers = sum(map(len, texts)), sum(len(r.answer.tokens) for r in requests)
        assert sum(reads[0]) <= prompts + verified
        steps = sum(request.answer.tally.drafted for request in requests)
        assert sum(reads[1]) <= 2 * prompts + answers + steps


def in_pieces(files, conversations):
    """A pair whose draft has a short context, and reads in small pieces."""
    return load_pair(
        *files["llama"], target_options=ModelOptions(n_ctx=1024, **EXACT),
        draft_options=DraftOptions(n_ctx=256, n_batch=32, **EXACT), conversations=conversations,
    )  # fmt: skip


def test_texts_stay_their_own_in_a_crowd(files, alone):
    """Requests come and go; the draft reads in small pieces, and is full in the middle of some."""
    with in_pieces(files, 3) as pair:
        life = live(pair, alone("removal"), 400, how=ALWAYS)
        assert life.done > 15
        for cache in (pair.draft_cache(k) for k in range(3)):
            target_tokens = pair.target_caches[cache.sequence].tokens
            assert cache.tokens == target_tokens[: cache.length]


def test_a_long_read_that_found_no_cells_begins_again(files, alone):
    """Pieces of it were read before; a finished answer gives way, and none is read twice over."""
    with in_pieces(files, 2) as pair:
        batcher, sampling = Batcher(pair, ALWAYS, parallel=2), settings_of(3, 0.8)
        for text, most in ((words(150, 1), 8), (words(120, 2), 20)):
            request = batcher.submit(text, sampling, Limits(max_tokens=most))
            list(batcher)
            assert request.answer.tokens == alone("removal").says(text, sampling, most)
            assert request.answer.tally.drafted > 3
        cache = pair.draft_cache(request.slot.number)
        assert request.slot.number == 1
        assert cache.tokens == request.live.tokens[: cache.length]
        assert cache.length > 130


@pytest.mark.parametrize("n_batch", [1, 4])
def test_a_draft_that_reads_few_tokens_in_a_pass(files, alone, n_batch):
    """What all have not read may be more than that."""
    target, draft = files["llama"]
    with load_pair(
        target, draft, target_options=ModelOptions(n_ctx=1024, **EXACT),
        draft_options=DraftOptions(n_batch=n_batch, **EXACT), conversations=5,
    ) as pair:  # fmt: skip
        life = live(pair, alone("removal"), 60, how=ALWAYS)
    assert life.done > 5
