"""Block drafts on hybrid targets: what the target reads again, the draft does not."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Speculation
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.pair import Pair
from dspark_gguf.schedule import Fixed
from tests.fakes import Scripted
from tests.tiny.test_block import BLOCKS, rows_from_scratch
from tests.tiny.test_rollback import CLOSE, EXACT, GREEDY, PLAIN, PROMPT, plain_text
from tests.tiny_dflash import write_dflash
from tests.tiny_gguf import Tiny
from tests.tiny_kinds import WRITERS

ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=16, learn=False)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    """A hybrid target with a block draft."""
    folder = tmp_path_factory.mktemp("block_kinds")

    def make(target, block):
        path = write_dflash(folder / f"{target}-{block}.gguf", BLOCKS[block], Tiny(context=1024))
        return Pair(
            WRITERS[target](folder / f"{target}.gguf"),
            path,
            ModelOptions(**EXACT),
            DraftOptions(**EXACT),
        )

    return make


@pytest.mark.parametrize("block", ["dspark", "dflash", "sliding window"])
@pytest.mark.parametrize("target", ["lfm2", "qwen35", "qwen3next"])
def test_says_what_plain_decoding_says(pair_of, target, block):
    """Greedy, with the draft's own guesses, nearly all of which are wrong."""
    with pair_of(target, block) as pair:
        text = plain_text(pair, PROMPT, 120)
        answer = Decoder.for_pair(pair, GREEDY, ALWAYS).answer(PROMPT, Limits(max_tokens=120))
        assert answer.tokens == text[len(PROMPT) :]
        assert answer.tally.drafted > 100


@pytest.mark.parametrize("target", ["lfm2", "qwen35", "qwen3next"])
def test_its_rows_are_those_of_a_new_draft(pair_of, target):
    """After rejections at every depth, an edit and a cancelled answer: all features are true, and
    none was taken twice.
    """
    with pair_of(target, "dspark") as pair:
        cache = pair.draft_cache()
        header = read_header(cache.model.path)
        tokens = list(PROMPT)
        for turn in range(4):
            text = plain_text(pair, tokens, 60)
            decoder = Decoder.for_pair(pair, GREEDY, PLAIN)
            decoder.drafter = Scripted(text, 6, cycle([2, 0, 6, 5, 1, 3, 4]))
            decoder.stopping_rule = Fixed(6)
            for k, round in enumerate(decoder.generate(tokens[:], Limits(max_tokens=40))):
                tokens += round.tokens
                assert cache.seen == len(tokens) - 1
                assert [*cache.tokens, *cache._pending] == tokens[:-1]
                if turn == 2 and k == 3:
                    break
            rows = cache.propose(tokens[-1], 6).rows
            found = np.stack([rows[k].copy() for k in range(6)])
            np.testing.assert_allclose(found, rows_from_scratch(pair, header, tokens, 6), **CLOSE)
            tokens = [*tokens[: 15 * (turn + 1)], 9, 9]


@pytest.mark.parametrize("target", ["lfm2", "qwen3next"])
def test_what_is_read_again_is_not_copied_again(pair_of, target, monkeypatch):
    """Features taken: one for each token of a pass that was new to the draft."""
    with pair_of(target, "dspark") as pair:
        cache = pair.draft_cache()
        text = plain_text(pair, PROMPT, 60)
        taken, read = [], []
        real_passed, real_first = cache.on_pass, cache._injection.first

        def on_pass(count, first):
            before = cache.seen
            real_passed(count, first)
            read.append(count)
            taken.append(cache.seen - before)

        cache.on_pass = on_pass
        injected = []
        monkeypatch.setattr(
            cache._injection, "first", lambda n, at: injected.append(n) or real_first(n, at)
        )
        pair.target_cache.trim(0)
        decoder = Decoder.for_pair(pair, GREEDY, PLAIN)
        decoder.drafter, decoder.stopping_rule = Scripted(text, 5, cycle([3])), Fixed(5)
        rounds = list(decoder.generate(PROMPT, Limits(max_tokens=40)))
        again = sum(round.reread for round in rounds)
        assert (again > 0) is (target == "qwen3next")
        assert sum(read) - sum(taken) == again
        cache.flush()
        assert sum(injected) == cache.length
