"""Idle time measures every kind of draft, behind every kind of memory, and leaves no trace."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation
from dspark_gguf.config import DraftOptions
from dspark_gguf.engine import measuring
from dspark_gguf.engine.pair import Pair
from dspark_gguf.figures import Figure
from dspark_gguf.learned import forget_all, learned_dir
from tests.crowd import EXACT, KINDS, pair_of, write_models
from tests.tiny.test_heads import ANY, CLOSE, PROMPT, VARIED, drafting, files
from tests.tiny.test_heads import open_pair as open_with_heads
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_gguf import write_llama

__all__ = ["files"]  # a fixture
DRAFTS = ["random", "random hybrid", "random hybrid without snapshots", "random, 3 heads",
          "random eagle3", "random eagle3 of a hybrid", "attending assistant", "block"]  # fmt: skip
AUTO = Speculation(learn=False)


def open_pair(files, name):
    """A pair with a draft that follows its target."""
    if name != "block":
        return open_with_heads(files, ANY[name])
    target, block = files(write_llama), files(write_dflash, Block())
    options = {"n_ctx": 256, **EXACT}
    return Pair(target, block, ModelOptions(**options), DraftOptions(**options))


@pytest.fixture
def truth(monkeypatch):
    """Every guess is made, and takes a third of a pass, the next ones a fifth."""
    guess_seconds, parts = measuring.guess_seconds, [1 / 3, 1 / 5]

    def told(target, draft):
        assert all(seconds > 0 for seconds in guess_seconds(target, draft))
        return tuple(part * told.one for part in parts)

    told.one, told.parts = 0.001, parts
    monkeypatch.setattr(measuring, "guess_seconds", told)
    return told


@pytest.mark.parametrize("name", DRAFTS)
def test_what_a_busy_moment_spoilt_is_mended(files, truth, name):
    """A guess that was as dear as many passes: after three answers the table is true."""
    with open_pair(files, name) as pair:
        costs = pair.learned(AUTO).costs
        list(Decoder.for_pair(pair, VARIED, AUTO).generate(PROMPT, Limits(max_tokens=5)))
        pair.measure_again(5.0)
        for _ in range(3):
            costs._first, costs._step = Figure(50.0, 1), Figure(50.0, 1)
            costs._first.value = costs._step.value = 2.5 * float(costs._base[0])
            for _ in range(3):
                truth.one = float(costs.target_seconds[0])
                pair.measure_again(5.0)
        truth.one = float(costs.target_seconds[0])
        assert costs.draft_seconds[0] == pytest.approx(truth.one * truth.parts[0], rel=0.3)
        if name != "block":  # which has no other steps
            step = np.diff(costs.draft_seconds)[0]
            assert step == pytest.approx(truth.one * truth.parts[1], rel=0.3)


@pytest.mark.parametrize("name", ["random", "block"])
def test_each_process_checks_a_guess(files, truth, name):
    """What an earlier process has learned of it may have been disturbed."""
    forget_all()
    how = Speculation(drafter="auto")
    with open_pair(files, name) as pair:
        pair.learned(how)
    (path,) = learned_dir().glob("*.json")
    values = json.loads(path.read_text())
    figures = values["costs"]["figures"]
    for part in ("first", "step"):
        figures[part] = [2.5 * figures["1"][0], 3]
    path.write_text(json.dumps(values))
    truth.one = figures["1"][0] * values["costs"]["level"]
    with open_pair(files, name) as pair:
        costs = pair.learned(how).costs
        assert costs.draft_seconds[0] < truth.one
    forget_all()


def rows_after(pair, token):
    """What the target says after what it holds and a token; and the draft's guesses."""
    target, draft = pair.target_cache, pair.caches.get("draft")
    found = []
    if draft is not None and draft.kind != "model":
        guesses = draft.propose(token, 3)
        found = [guesses[k].copy() for k in range(3)]
    length = target.length
    found.append(target.decode([token], 1)[0].copy())
    target.trim(length)
    return np.stack(found)


@pytest.mark.parametrize("name", [*DRAFTS, *KINDS])
def test_the_conversation_goes_on_as_if_nothing_had_been(files, request, name):
    """Tokens, the rows of target and draft, and the next answer are those of a pair that rests."""
    if name in KINDS:
        kinds = request.getfixturevalue("kinds")
        pairs = [pair_of(kinds, name, 1) for _ in range(2)]
    else:
        pairs = [open_pair(files, name) for _ in range(2)]
    said = []
    for pair, measures in zip(pairs, (True, False), strict=True):
        costs, talk, found = pair.learned(AUTO).costs, list(PROMPT), []
        for words in ([7, 8, 9], [30, 31], [50, 51, 52, 53]):
            talk += words
            decoder = Decoder.for_pair(pair, VARIED, drafting(3))
            talk += decoder.answer(talk, Limits(max_tokens=20)).tokens
            held, passes = list(pair.target_cache.tokens), costs._passes
            if measures:
                pair.measure_again(5.0)
                assert costs._passes > passes
            assert pair.target_cache.tokens == held == talk[:-1]
            found.append(rows_after(pair, talk[-1]))
        said.append((talk, np.stack(found)))
        pair.close()
    assert said[0][0] == said[1][0]
    np.testing.assert_allclose(said[0][1], said[1][1], **CLOSE)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A target of every kind of memory, with its draft."""
    return write_models(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize("name", ["random", "random eagle3", "block"])
def test_nobody_waits_for_more_than_the_pass_that_runs(files, name, nth):
    """Somebody comes in the n-th pass: no other one of the target begins, at most a guess ends."""
    with open_pair(files, name) as pair:
        pair.learned(AUTO)
        talk = [*PROMPT, *Decoder.for_pair(pair, VARIED, drafting(3)).answer(
            PROMPT, Limits(max_tokens=20)).tokens]  # fmt: skip
        held, late = list(pair.target_cache.tokens), []
        seen = 0

        def watch(context):
            decode = context.decode

            def watched(batch):
                nonlocal seen
                late.extend([context] if pair.interrupt.is_set() else [])
                if seen == nth:
                    pair.interrupt.set()
                seen += 1
                decode(batch)

            context.decode = watched

        for cache in pair.caches.values():
            watch(cache.context)
        pair.measure_again(5.0)
        assert pair.interrupt.is_set()
        pair.interrupt.clear()
        assert late in ([], [pair.draft_cache().context])
        assert pair.target_cache.tokens == held
        again = Decoder.for_pair(pair, VARIED, drafting(3)).answer([*talk, 5], Limits(max_tokens=9))
    with open_pair(files, name) as pair:
        plain = Decoder.for_pair(pair, VARIED, Speculation(mode="off"))
        assert again.tokens == plain.answer([*talk, 5], Limits(max_tokens=9)).tokens


def test_a_seed_says_the_same_after_a_pause(files):
    """And where guesses are always right, they are so after one."""
    greedy = Sampling(temperature=0, ignore_eos=True)
    for name in ("qwen35, copy", "mimo2, 3 heads, copy", "eagle3", "assistant"):
        with open_with_heads(files, ANY[name]) as pair:
            pair.learned(AUTO)
            talk = list(PROMPT)
            for _ in range(3):
                answer = Decoder.for_pair(pair, greedy, drafting(3)).answer(
                    talk, Limits(max_tokens=20)
                )
                assert answer.tally.drafted == answer.tally.accepted > 0
                talk += answer.tokens
                pair.measure_again(5.0)
