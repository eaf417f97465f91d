"""Prediction heads, assistants and EAGLE-3 drafts on real llama.cpp: always right where they were
made to be right, and never in the way where they are wrong.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import cycle

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation
from dspark_gguf.calibration import Calibration
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.cost import FixedCosts
from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.schedule import Fixed, Optimal
from tests.fakes import Scripted
from tests.tiny_cycle import CYCLE
from tests.tiny_eagle3 import Eagle, write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_heads import HEADS, ONE_HEAD, SEVERAL, TRUNK, Made, write_mtp

#: Caches that hold numbers as they were computed, so that the order of passes changes nothing.
EXACT = {
    "n_ctx": 512, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
GREEDY = Sampling(temperature=0, ignore_eos=True)
SEEDED = Sampling(temperature=0.8, seed=3, ignore_eos=True)
#: A penalty keeps random models from saying one thing for ever, which any state would do for.
VARIED = Sampling(temperature=0, ignore_eos=True, repeat_penalty=1.8, repeat_last_n=64)
PLAIN = Speculation(mode="off")
PROMPT = list(CYCLE[3:15])
#: F32 rows of the same tokens, computed in passes of other sizes.
CLOSE = {"rtol": 0, "atol": 2e-3}
TOKENS = 60


def drafting(most):
    """Always as many guesses."""
    return Speculation(mode="on", draft_min_prob=0.0, draft_max=most, learn=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes a file once: ``files(write, argument, ...)``."""
    folder = tmp_path_factory.mktemp("heads")

    @cache
    def written(write, *arguments, **options):
        number = written.cache_info().misses
        return write(folder / f"{number}.gguf", *arguments, **options)

    return written


def own(files, made):
    """A target with its heads inside."""
    path = files(write_mtp, made)
    return path, path


def sidecar(files, made, **of_target):
    """A target and a file of its heads alone."""
    return files(write_mtp, made, **of_target), files(write_mtp, made, keep=HEADS)


def eagle(files, draft, target=None):
    """A llama, or another target, and an EAGLE-3 draft."""
    target = target or partial(write_cycle_llama, random=draft.random)
    return files(target), files(write_eagle3, draft)


def assistant(files, adds=0):
    """A Gemma 4 and its assistant."""
    return files(write_gemma4), files(write_assistant, adds)


def _hybrid(path, how="cycle"):
    return write_mtp(path, Made("qwen35", how), keep=TRUNK, counts_heads=False)


def _deep_hybrid(path):
    return write_mtp(path, Made("qwen35", "random", recurrent=0.2), TRUNK, counts_heads=False)


BARE = {"keep": TRUNK, "counts_heads": False}
#: Always right: what makes the files of target and draft, and the most guesses of a round.
RIGHT = {
    **{
        f"{arch}, {how}": (partial(own, made=Made(arch, how)), 64)
        for arch in (*ONE_HEAD, *SEVERAL)
        for how in ("copy", "cycle")
    },
    **{
        f"{arch}, 3 heads, {how}": (partial(own, made=Made(arch, how, heads=3)), 3)
        for arch in SEVERAL
        for how in ("copy", "cycle")
    },
    "sidecar": (partial(sidecar, made=Made()), 64),
    "sidecar, 3 heads": (partial(sidecar, made=Made(how="cycle", heads=3)), 3),
    "sidecar of a hybrid": (partial(sidecar, made=Made("qwen35")), 64),
    "sidecar, target without heads": (partial(sidecar, made=Made(), **BARE), 64),
    "sidecar, target stripped": (partial(sidecar, made=Made("qwen35"), keep=TRUNK), 64),
    "eagle3": (partial(eagle, draft=Eagle()), 64),
    "eagle3, borrowing": (partial(eagle, draft=Eagle(own=False)), 64),
    "eagle3 of a hybrid": (partial(eagle, draft=Eagle(), target=_hybrid), 64),
    "assistant": (assistant, 64),
}
#: Wrong nearly always.
WRONG = {
    "one step too far": partial(own, made=Made(how="cycle", steps=2)),
    "random": partial(own, made=Made(how="random")),
    "random hybrid": partial(own, made=Made("qwen35", "random", recurrent=0.2)),
    "random hybrid without snapshots": partial(own, made=Made("qwen3next", "random",
                                                              recurrent=0.2)),
    "random bailingmoe3": partial(own, made=Made("bailingmoe3", "random", recurrent=0.2)),
    "random nemotron": partial(own, made=Made("nemotron_h_moe", "random", recurrent=0.2)),
    "random, 3 heads": partial(own, made=Made("mimo2", "random", heads=3)),
    "random eagle3": partial(eagle, draft=Eagle(random=True)),
    "random eagle3 of a hybrid": partial(eagle, draft=Eagle(random=True), target=_deep_hybrid),
    "eagle3 of half the tokens": partial(eagle, draft=Eagle(reduced=True)),
    "attending assistant": partial(assistant, adds=3),
}  # fmt: skip
#: llama.cpp normalizes the states that it hands out of rows that it gives logits for, of this one.
BY_ROWS = {"random deepseek4": partial(own, made=Made("deepseek4", "random", recurrent=0.2))}
ANY = {**{name: make for name, (make, _) in RIGHT.items()}, **WRONG, **BY_ROWS}


def open_pair(files, make, conversations=1, **options):
    target, draft = make(files)
    options = {**EXACT, **options}
    return Pair(target, draft, ModelOptions(**options), DraftOptions(**options),
                conversations=conversations)  # fmt: skip


def plain_and(pair, sampling, speculation, count=TOKENS):
    """An answer without drafts and one with."""
    return [
        Decoder.for_pair(pair, sampling, how).answer(PROMPT, Limits(max_tokens=count))
        for how in (PLAIN, speculation)
    ]


@pytest.mark.parametrize("most", [1, 3, 7])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_draft_is_always_accepted(files, name, most):
    """Every guess, greedy and with a seed. With a token, a position or a state of another place,
    with a hole in its cache or another head, it would say something else.
    """
    make, limit = RIGHT[name]
    with open_pair(files, make) as pair:
        for sampling in (GREEDY, SEEDED):
            plain, answer = plain_and(pair, sampling, drafting(most))
            assert plain.tokens == answer.tokens
            assert len(set(answer.tokens)) > 30
            assert answer.tally.drafted == answer.tally.accepted > 0
            rounds = 1 + -(-(TOKENS - 1) // (min(most, limit) + 1))  # the first reads the prompt
            assert answer.tally.rounds == rounds


@pytest.mark.parametrize("name", [*WRONG, *BY_ROWS])
def test_a_wrong_draft_changes_nothing(files, name):
    """The text is plain decoding's, with rejections at every depth."""
    with open_pair(files, ANY[name]) as pair:
        for sampling in (GREEDY, SEEDED, VARIED):
            plain, answer = plain_and(pair, sampling, drafting(3))
            assert plain.tokens == answer.tokens
            assert answer.tally.accepted < 0.8 * answer.tally.drafted


def fresh_rows(files, make, tokens, count):
    """The draft's rows after `tokens`, of a pair that reads them all at once."""
    with open_pair(files, make) as pair:
        draft = pair.draft_cache()
        prefill(pair.target_cache, tokens[:-1])
        rows = draft.propose(tokens[-1], count).rows
        return np.stack([rows[k].copy() for k in range(count)])


TURNS = [list(range(10, 40)), [3, 4, 5], [70, 71], [90, 91, 92, 93], [50], [60]]


@pytest.mark.parametrize("name", ["qwen35, copy", "hy_v3, 3 heads, copy", *WRONG])
def test_its_cache_stays_true_over_many_turns(files, name):
    """Edits, an abandoned answer, rounds without a draft, a new conversation, cache reuse: the rows
    are those of a draft that reads the whole conversation at once.
    """
    make, count = ANY[name], 3
    with open_pair(files, make) as pair:
        draft = pair.draft_cache()
        on, off = (Decoder.for_pair(pair, VARIED, how) for how in (drafting(3), PLAIN))
        tokens = []
        for turn, words in enumerate(TURNS):
            if turn == 2:
                tokens = [*tokens[:33], 99, *tokens[35:]]  # an earlier turn is edited
            if turn == 5:
                tokens = tokens[:20]  # another conversation that begins like this one
            tokens = tokens + words
            answer = []
            for round in (off if turn == 3 else on).generate(tokens, Limits(max_tokens=12)):
                answer += round.tokens
                if turn == 1 and len(answer) > 3:
                    break  # as by Ctrl-C
            tokens += answer
            assert draft.seen == len(tokens) - 1 >= pair.target_cache.length
            rows = draft.propose(tokens[-1], count).rows
            found = np.stack([rows[k].copy() for k in range(count)])
            wanted = fresh_rows(files, make, tokens, count)
            assert np.abs(wanted[np.isfinite(wanted)]).max() > 1.0
            np.testing.assert_allclose(found, wanted, **CLOSE)


@pytest.mark.parametrize("name", WRONG)
def test_rejections_at_every_depth(files, name):
    """Drafts of another kind, right for 0 to 6 tokens: what the target takes back and reads again,
    the draft follows.
    """
    make = WRONG[name]
    with open_pair(files, make) as pair:
        draft = pair.draft_cache()
        plain = Decoder.for_pair(pair, VARIED, PLAIN)
        text = [*PROMPT, *plain.answer(PROMPT, Limits(max_tokens=80)).tokens]
        decoder = Decoder.for_pair(pair, VARIED, PLAIN)
        decoder.drafter = Scripted(text, 6, cycle([2, 0, 6, 5, 1, 3, 4]))
        decoder.stopping_rule = Fixed(6)
        tokens = list(PROMPT)
        draft.begin(PROMPT[:-1])
        for round in decoder.generate(PROMPT, Limits(max_tokens=40)):
            tokens += round.tokens
            assert draft.seen == len(tokens) - 1
        assert tokens == text[: len(tokens)]
        rows = draft.propose(tokens[-1], 3).rows
        found = np.stack([rows[k].copy() for k in range(3)])
        np.testing.assert_allclose(found, fresh_rows(files, make, tokens, 3), **CLOSE)


def test_the_scheduler_chooses_the_depth(files):
    """On a fixed table: one that is right is used up to its limit, one that is wrong is given up;
    where a guess costs more than a pass, none is made.
    """
    cheap, dear = np.arange(1, 13) * 0.1, np.arange(1, 13) * 1.5
    for name, steps, worth in (("hy_v3, copy", cheap, 8), ("random", cheap, 0),
                               ("hy_v3, copy", dear, 0)):  # fmt: skip
        with open_pair(files, ANY[name]) as pair:
            decoder = Decoder.for_pair(pair, GREEDY)
            table = FixedCosts(1.0 + 0.01 * np.arange(13), steps)
            decoder.stopping_rule = Optimal(table, Calibration(), 8, source="mtp")
            rounds = list(decoder.generate(PROMPT, Limits(max_tokens=200)))
        late = [round.drafted for round in rounds[len(rounds) // 2 : -2]]
        if worth:
            assert set(late) == {worth}
        else:
            assert sum(map(bool, late)) < 0.1 * len(late)  # it tries now and then


def test_measured_and_traced_like_any_other(files):
    """The default: costs are measured, the text is plain decoding's; chains can be recorded."""
    from dspark_gguf.measure.profile import profile
    from dspark_gguf.measure.prompts import Prompt
    from dspark_gguf.measure.trace import record

    for name in ("qwen35, copy", "mimo2, 3 heads, copy", "eagle3", "assistant"):
        with open_pair(files, ANY[name]) as pair:
            default = Speculation(learn=False)
            plain, answer = plain_and(pair, GREEDY, default)
            assert plain.tokens == answer.tokens
            costs = pair.learned(default).costs
            assert costs.covers(12, drafts=True)
            assert (np.diff(costs.draft_seconds) > 0).all()
            chains = record(pair, Prompt("chat", [{"role": "user", "content": "x"}]), 8, 3)
            assert chains.survived.shape == (8, 3)
            if "copy" in name:
                assert chains.survived.all()
            (table,) = profile(pair, [16], 4)
            assert table.draft > 0
            assert not table.once
