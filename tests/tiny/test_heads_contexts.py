"""Drafts that go on from their target's states, in contexts of all kinds: long prompts, edits,
small contexts, interrupts, a shifted context.
"""

from __future__ import annotations

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Speculation
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.memory import Footprint
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.noise import Noise
from dspark_gguf.schedule import Fixed
from tests.fakes import rows_of
from tests.tiny.test_heads import (
    ANY,
    CLOSE,
    EXACT,
    GREEDY,
    PLAIN,
    PROMPT,
    RIGHT,
    VARIED,
    drafting,
    files,
    fresh_rows,
    open_pair,
    plain_and,
)
from tests.tiny_cycle import CYCLE
from tests.tiny_heads import TRUNK, Made, write_mtp

__all__ = ["files"]  # a fixture


@pytest.mark.parametrize("name", ["hy_v3, copy", "mimo2, 3 heads, copy", "eagle3", "assistant"])
def test_a_long_prompt_in_many_passes(files, name):
    """More than wait for the draft: it reads them on the way, and is as right as ever."""
    make, _ = RIGHT[name]
    prompt = [*CYCLE * 10, *PROMPT]
    with open_pair(files, make, n_batch=48, n_ubatch=32) as pair:
        on, off = (
            Decoder.for_pair(pair, GREEDY, how).answer(prompt, Limits(max_tokens=30))
            for how in (drafting(3), PLAIN)
        )
        assert on.tokens == off.tokens
        assert on.tally.drafted == on.tally.accepted > 0


@pytest.mark.parametrize(
    "name",
    ["hy_v3, copy", "qwen35, copy", "qwen3next, copy", "mimo2, 3 heads, copy",
     "eagle3 of a hybrid", "assistant"],
)  # fmt: skip
def test_an_edit_costs_few_tokens(files, name):
    """The same question again, and one that goes on from the middle of a long answer: at most one
    token is read twice, where the target can take back single tokens.
    """
    prompt = [*CYCLE, *PROMPT]
    with open_pair(files, ANY[name], n_ctx=1024) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, drafting(3))
        first = decoder.answer(prompt, Limits(max_tokens=450))  # more states than are kept
        again = decoder.answer(prompt, Limits(max_tokens=450))
        assert again.tokens == first.tokens
        assert again.tally.drafted == again.tally.accepted > 0
        # The state at the end of the prompt was kept: no token is read twice.
        assert again.cached_tokens == len(prompt) - (2 if name == "assistant" else 1)
        if pair.target_cache.rollback == "removal":
            edited = [*prompt, *first.tokens[:50], 70, *PROMPT]
            answer = decoder.answer(edited, Limits(max_tokens=40))
            assert answer.tally.drafted == answer.tally.accepted > 0
            assert answer.cached_tokens >= len(prompt) + 50 - 1


def test_beyond_the_drafts_context(files):
    """The draft's context ends first: plain decoding from there on, the same text."""
    target, path = RIGHT["sidecar"][0](files)
    small = DraftOptions(**{**EXACT, "n_ctx": 32})
    with Pair(target, path, ModelOptions(**EXACT), small) as pair:
        for _ in range(2):
            plain, answer = plain_and(pair, GREEDY, drafting(3))
            assert plain.tokens == answer.tokens
            assert answer.tally.drafted == answer.tally.accepted == 15


@pytest.mark.parametrize("name", ["hy_v3, copy", "eagle3", "hy_v3, 3 heads, copy", "assistant"])
def test_an_interrupted_pass_leaves_no_hole(files, name):
    """A pass whose states were lost: no guess is blind; the target reads it again at the start."""
    make, _ = RIGHT[name]
    with open_pair(files, make) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, drafting(3))
        decoder.answer(PROMPT, Limits(max_tokens=6))
        draft, target = pair.draft_cache(), pair.target_cache
        target.listeners.remove(draft)
        rows_of(target, [5, 6])
        target.listeners.append(draft)
        tokens = [*target.tokens, 9]
        assert len(decoder.drafter.propose(tokens, Fixed(4).plan(4))) == 0
        decoder.drafter.restart(tokens[:-1], Noise(0))
        answer = decoder.answer(PROMPT, Limits(max_tokens=40))
        assert answer.tally.drafted == answer.tally.accepted > 0


@pytest.mark.parametrize("name", ["hy_v3, cycle", "qwen35, cycle", "eagle3", "assistant"])
@pytest.mark.parametrize(
    "options",
    [{"flash_attn": "on"}, {"flash_attn": "on", "cache_type_k": "f16", "cache_type_v": "f16"},
     {"swa_full": False}, {"n_batch": 1, "n_ubatch": 1}, {"n_batch": 20, "n_ubatch": 3}],
    ids=lambda options: ", ".join(f"{key} {value}" for key, value in options.items()),
)  # fmt: skip
def test_whatever_the_contexts_are_opened_with(files, name, options):
    """Also with windows that forget, and with passes smaller than a draft."""
    with open_pair(files, ANY[name], **options) as pair:
        plain, answer = plain_and(pair, GREEDY, drafting(3))
        assert plain.tokens == answer.tokens
        assert answer.tally.drafted == answer.tally.accepted > 0
        again = Decoder.for_pair(pair, GREEDY, drafting(3)).answer(
            [*PROMPT, *answer.tokens[:20], 70, *PROMPT], Limits(max_tokens=20)
        )
        assert again.tally.drafted == again.tally.accepted > 0


@pytest.mark.parametrize("name", ["hy_v3, copy", "mimo2, 3 heads, copy", "eagle3", "assistant"])
def test_small_contexts(files, name):
    """There is hardly room for a prompt; the default decides, and nothing breaks."""
    for n_ctx in (14, 16, 20, 33):
        with open_pair(files, ANY[name], n_ctx=n_ctx) as pair:
            plain, answer = plain_and(pair, GREEDY, Speculation(learn=False))
            assert plain.tokens == answer.tokens
            plain, answer = plain_and(pair, GREEDY, drafting(7))
            assert plain.tokens == answer.tokens


@pytest.mark.parametrize("name", ["hy_v3, copy", "qwen3next, copy", "mimo2, 3 heads, copy",
                                  "eagle3", "assistant"])  # fmt: skip
def test_interrupted_while_it_reads(files, name):
    """Ctrl-C in a long prompt: the next answer is as right as ever, whatever was read."""
    prompt = [*CYCLE * 4, *PROMPT]
    with open_pair(files, ANY[name], n_batch=48, n_ubatch=48) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, drafting(3))

        class Interrupts:
            passes = 0

            def on_pass(self, count, first):
                self.passes += 1
                if self.passes == 2:
                    pair.interrupt.set()

            def on_trim(self, length):
                pass

        pair.target_cache.listeners.append(Interrupts())
        rounds = list(decoder.generate(prompt, Limits(max_tokens=20)))
        assert rounds[-1].finish_reason == "cancelled"
        pair.interrupt.clear()
        answer = decoder.answer(prompt, Limits(max_tokens=20))
        assert answer.tally.drafted == answer.tally.accepted > 0


@pytest.mark.parametrize("name", ["hy_v3, copy", "qwen35, copy", "eagle3", "assistant"])
def test_when_the_context_is_shifted(files, name):
    """The oldest tokens are forgotten in the middle of an answer; drafts go on with the rest."""
    with open_pair(files, ANY[name], n_ctx=64) as pair:
        said = []
        for how in (PLAIN, drafting(3)):
            decoder, drafted = Decoder.for_pair(pair, GREEDY, how), 0
            rounds = list(
                decoder.generate(
                    PROMPT, Limits(max_tokens=120), shift=lambda said: [*PROMPT, *said[-20:]]
                )
            )
            said.append([token for round in rounds for token in round.tokens])
            drafted = sum(round.drafted for round in rounds)
            assert sum(round.accepted for round in rounds) == drafted
        assert said[0] == said[1]
        assert len(said[0]) == 120
        assert drafted > 30


@pytest.mark.parametrize("name", ["random", "random hybrid", "random, 3 heads", "random eagle3"])
def test_after_an_edit_far_back_no_pair_is_stale(files, name):
    """What the draft says after it is what one says that has read nothing else."""
    prompt = [*CYCLE, *PROMPT]
    with open_pair(files, ANY[name], n_ctx=1024) as pair:
        decoder, draft = Decoder.for_pair(pair, VARIED, drafting(3)), pair.draft_cache()
        tokens = [*prompt, *decoder.answer(prompt, Limits(max_tokens=400)).tokens]
        for edited in (prompt, [*prompt, 70, 71, 72], [*tokens[:40], 80, 81]):
            answer = decoder.answer(edited, Limits(max_tokens=9))
            tokens = [*edited, *answer.tokens]
            assert answer.tally.drafted > 0
            rows = draft.propose(tokens[-1], 3).rows
            found = np.stack([rows[k].copy() for k in range(3)])
            np.testing.assert_allclose(found, fresh_rows(files, ANY[name], tokens, 3), **CLOSE)


@pytest.mark.parametrize("name", ["hy_v3, copy", "mimo2, 3 heads, copy"])
def test_it_follows_while_another_decoder_answers(files, name):
    """Plain answers after an edit: what it reads meanwhile is what the target reads."""
    with open_pair(files, ANY[name], n_ctx=1024) as pair:
        on, off = (Decoder.for_pair(pair, GREEDY, how) for how in (drafting(3), PLAIN))
        tokens = [*PROMPT, *on.answer(PROMPT, Limits(max_tokens=30)).tokens]
        draft, target = pair.draft_cache(), pair.target_cache
        draft.propose(tokens[-1], 2)
        edited = [*tokens[:-1], 70, *CYCLE]  # the newest token, whose pair was read, is another one
        off.answer(edited, Limits(max_tokens=400))
        assert draft.length > len(edited)
        assert draft.tokens == target.tokens[: draft.length]


@pytest.mark.parametrize("arch", ["bailingmoe3", "nemotron_h_moe"])
def test_the_size_of_a_state_is_what_llama_cpp_saves(tmp_path, arch):
    """Of Kimi's delta attention, and of Mamba-2 with layers that have neither it nor attention."""
    path = write_mtp(tmp_path / "x.gguf", Made(arch), keep=TRUNK, counts_heads=False)
    with Pair(path, None, ModelOptions(n_ctx=256)) as pair:
        prefill(pair.target_cache, PROMPT)
        saved = len(pair.target_cache._rollback.checkpoints[-1].data)
        known = Footprint(read_header(path), pair.target.options).state_bytes
        assert pair.target_cache.rollback == "snapshots"
        assert 0 < saved - known < 300
