"""Block drafts on real llama.cpp: right where they were made to be right, and never in the way."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions
from dspark_gguf.engine import symbols
from dspark_gguf.engine.block import walk
from dspark_gguf.engine.context import context_params
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.noise import Noise
from dspark_gguf.schedule import Fixed
from tests.fakes import rows_of
from tests.tiny_dflash import (
    MASK,
    N_TOKENS,
    Block,
    embedding,
    sure_of,
    write_cycle_target,
    write_dflash,
)
from tests.tiny_gguf import write_llama

#: Caches that hold numbers as they were computed, so that the order of passes changes nothing.
EXACT = {"n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
GREEDY = Sampling(temperature=0)
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=16)
PLAIN = Speculation(mode="off")
PROMPT = [10, 20, 30]
#: What the cycle target says after each token.
SUCCESSOR = [(7 * token + 3) % 256 for token in range(N_TOKENS)]

BLOCKS = {
    "dspark": Block(),
    "bonus anchor": Block(anchor_first=False),
    "no confidence head": Block(confidence=False),
    "dflash": Block(markov=False, confidence=False, anchor_first=False),
    "dflash, anchor first": Block(markov=False, confidence=False),
    "reduced vocabulary": Block(reduced=True),
    "own head": Block(own_head=True),
    "causal": Block(causal=True),
    "sliding window": Block(window=32),
    "multi-axis rope": Block(sections=True),
    "dflash2": Block(markov=False, confidence=False, selector=True),
    "one layer": Block(layers=(1,)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@pytest.fixture(scope="module")
def target(folder):
    return write_llama(folder / "target.gguf")


@pytest.fixture(scope="module")
def cycle_target(folder):
    return write_cycle_target(folder / "cycle.gguf", SUCCESSOR)


def exact_pair(target, draft):
    return load_pair(
        target, draft, target_options=ModelOptions(**EXACT), draft_options=DraftOptions(**EXACT)
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_says_what_plain_decoding_says(name, target, folder):
    """Any block, greedy and with a seed: the draft only says how many tokens come per pass."""
    draft = write_dflash(folder / "any.gguf", BLOCKS[name])
    with exact_pair(target, draft) as pair:
        for sampling in (GREEDY, Sampling(seed=3, temperature=0.8)):
            answers = [
                Decoder.for_pair(pair, sampling, speculation).answer(PROMPT, Limits(max_tokens=60))
                for speculation in (PLAIN, ALWAYS)
            ]
            assert answers[0].tokens == answers[1].tokens
            drafts = BLOCKS[name].size - (name in ("bonus anchor", "dflash", "dflash2"))
            assert max(answers[1].tally.drafted_by_position) > 0
            if sampling is GREEDY:
                assert len(answers[1].tally.drafted_by_position) == drafts


@pytest.mark.parametrize("anchor_first", [True, False])
@pytest.mark.parametrize("wrong_every", [1000, 5, 3])
def test_accepted_length_is_known(anchor_first, wrong_every, cycle_target, folder):
    """A Markov head that knows the target's cycle but for some tokens: each round accepts exactly
    the way to the next of them. Off by one position, nothing would be accepted.
    """
    wrong = {token for token in range(N_TOKENS) if token % wrong_every == 2}
    cycle = [
        (successor + 1) % 256 if token in wrong else successor
        for token, successor in enumerate(SUCCESSOR)
    ]
    block = Block(cycle=tuple(cycle), anchor_first=anchor_first)
    most = block.size if anchor_first else block.size - 1
    with exact_pair(cycle_target, write_dflash(folder / "cycle_draft.gguf", block)) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, ALWAYS)
        last, left = PROMPT[-1], 80
        for round in decoder.generate(PROMPT, Limits(max_tokens=80)):
            if round.prompt_tokens:  # the first token comes with the prompt's pass
                [last], left = round.tokens, left - 1
                continue
            expected, token = 0, last
            while expected < most and token not in wrong:
                token, expected = SUCCESSOR[token], expected + 1
            if left > most:
                assert (round.drafted, round.accepted) == (most, expected)
            left -= len(round.tokens)
            assert round.tokens[0] == SUCCESSOR[last]
            last = round.tokens[-1]


@pytest.mark.parametrize("anchor_first", [True, False])
def test_confidence_head(anchor_first, cycle_target, folder):
    """Its weights are set by hand: the sigmoid of what the token before each guess weighs."""
    block = Block(cycle=tuple(SUCCESSOR), anchor_first=anchor_first)
    with exact_pair(cycle_target, write_dflash(folder / "sure.gguf", block)) as pair:
        # The rule `threshold` is told the probability itself.
        rule = Speculation(mode="on", draft_max=16, draft_min_prob=0.01)
        decoder = Decoder.for_pair(pair, GREEDY, rule)
        before = PROMPT[-1]
        for round in decoder.generate(PROMPT, Limits(max_tokens=30)):
            for score in round.draft.segments[0].scores if round.drafted else ():
                weighed = float(embedding()[before] @ sure_of()) + 0.5
                assert score == pytest.approx(1 / (1 + np.exp(-weighed)), abs=1e-3)
                before = SUCCESSOR[before]
            if round.tokens:
                before = round.tokens[-1]


def rows_from_scratch(pair, header, tokens, count):
    """The draft's rows after `tokens`, with contexts and batches made here, step by step."""
    draft = BlockDraft(header)
    n_ctx, rows = pair.target_cache.n_ctx, pair.target_cache.max_rows
    params = context_params(pair.target.options, n_ctx, 512, rows)
    target = llama_cpp.llama_init_from_model(pair.target.pointer, params)
    params = context_params(pair.draft.options, n_ctx, 512, draft.block_size)
    params.ctx_other = target
    context = llama_cpp.llama_init_from_model(pair.draft.pointer, params)
    for layer in draft.target_layers:
        symbols.function("llama_set_embeddings_layer_inp")(target, layer, True)
    symbols.function("llama_set_embeddings_nextn")(context, True, True)
    llama_cpp.llama_set_causal_attn(context, draft.causal)
    read = tokens[:-1]

    def batch_of(ids, start, outputs):
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        for k, token in enumerate(ids):
            batch.token[k], batch.pos[k], batch.logits[k] = token, start + k, outputs
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, 0
        batch.n_tokens = len(ids)
        return batch

    batch = batch_of(read, 0, 0)
    batch.logits[len(read) - 1] = 1
    assert llama_cpp.llama_decode(target, batch) == 0
    get = symbols.function("llama_get_embeddings_layer_inp")
    features = np.concatenate(
        [
            np.ctypeslib.as_array(get(target, layer), (len(read), draft.width)).copy()
            for layer in draft.target_layers
        ],
        axis=1,
    )
    inject = llama_cpp.llama_batch_init(len(read), features.shape[1], 1)
    ctypes.memmove(inject.embd, features.ctypes.data, features.nbytes)
    for k in range(len(read)):
        inject.pos[k], inject.logits[k], inject.n_seq_id[k], inject.seq_id[k][0] = k, 0, 1, 0
    inject.n_tokens = len(read)
    assert llama_cpp.llama_decode(context, inject) == 0
    skipped = 0 if draft.anchor_first else 1
    block = batch_of([tokens[-1]] + [MASK] * (count + skipped - 1), len(read), 1)
    assert llama_cpp.llama_decode(context, block) == 0
    rows = np.stack([
        np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, k + skipped), (N_TOKENS,))
        for k in range(count)
    ]).copy()  # fmt: skip
    for one in (batch, inject, block):
        llama_cpp.llama_batch_free(one)
    llama_cpp.llama_free(context)
    llama_cpp.llama_free(target)
    return rows


@pytest.mark.parametrize("name", ["dspark", "bonus anchor", "dflash", "causal", "sliding window"])
def test_features_stay_true_over_five_turns(name, target, folder):
    """Edits, rejections, a cancelled answer, rounds without a draft, cache reuse: the draft's rows
    are those of contexts that read the whole conversation at once.
    """
    path = write_dflash(folder / "turns.gguf", BLOCKS[name])
    header = read_header(path)
    turns = [list(range(10, 40)), [3, 4, 5], [70, 71], [90, 91, 92, 93], [50]]
    with exact_pair(target, path) as pair:
        cache = pair.draft_cache()
        on, off = (Decoder.for_pair(pair, GREEDY, how) for how in (ALWAYS, PLAIN))
        tokens: list[int] = []
        for turn, words in enumerate(turns):
            if turn == 2:
                tokens = [*tokens[:33], 99, *tokens[35:]]  # an earlier turn is edited
            tokens += words
            decoder = off if turn == 3 else on
            rounds = decoder.generate(tokens, Limits(max_tokens=12))
            answer = []
            for round in rounds:
                answer += round.tokens
                if turn == 1 and len(answer) > 3:
                    break  # abandoned, as by Ctrl-C
            tokens += answer
            assert cache.seen == len(tokens) - 1 == pair.target_cache.length
            count = cache.max_drafts
            ours = cache.propose(tokens[-1], count).rows
            found = np.stack([ours[k].copy() for k in range(count)])
            wanted = rows_from_scratch(pair, header, tokens, count)
            assert np.abs(found - wanted).max() < 2e-3
            assert np.abs(wanted).max() > 1.0


def test_beyond_the_drafts_context(target, folder):
    """The draft's context ends first: plain decoding from there on, the same text."""
    path = write_dflash(folder / "short.gguf")
    small = DraftOptions(**{**EXACT, "n_ctx": 32})
    options = ModelOptions(**EXACT)
    with load_pair(target, path, target_options=options, draft_options=small) as pair:
        on, off = (
            Decoder.for_pair(pair, GREEDY, how).answer(PROMPT, Limits(max_tokens=60))
            for how in (ALWAYS, PLAIN)
        )
        assert on.tokens == off.tokens
        assert on.tally.drafted > 0
        again = Decoder.for_pair(pair, GREEDY, ALWAYS).answer(PROMPT, Limits(max_tokens=60))
        assert again.tokens == off.tokens
        assert again.tally.drafted == on.tally.drafted


def test_a_draft_that_comes_late(target, folder):
    """What the target read before the draft was loaded is read again: no guess is blind."""
    with exact_pair(target, write_dflash(folder / "late.gguf")) as pair:
        plain = Decoder.for_pair(pair, GREEDY, PLAIN).answer(PROMPT, Limits(max_tokens=20))
        tokens = [*PROMPT, *plain.tokens]
        answer = Decoder.for_pair(pair, GREEDY, ALWAYS).answer(tokens, Limits(max_tokens=8))
        assert answer.cached_tokens == 0
        assert answer.tally.drafted > 0


def test_an_interrupted_pass_leaves_no_hole(target, folder):
    """A pass whose features were lost: the target reads it again at the next start."""
    with exact_pair(target, write_dflash(folder / "hole.gguf")) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, ALWAYS)
        decoder.answer(PROMPT, Limits(max_tokens=6))
        cache, target_cache = pair.draft_cache(), pair.target_cache
        target_cache.listeners.remove(cache)
        rows_of(target_cache, [5, 6])
        target_cache.listeners.append(cache)
        assert cache.seen == target_cache.length - 2
        tokens = [*target_cache.tokens, 9]
        drafter = decoder.drafter
        assert len(drafter.propose(tokens, Fixed(4).plan(4))) == 0
        drafter.restart(tokens[:-1], Noise(0))
        assert cache.seen == target_cache.length == len(tokens) - 3


def test_the_lattice_of_dflash2():
    """The greedy path: each position's scores are those behind the candidate chosen before it."""
    lattice = np.zeros((2, 12), dtype=np.float32)
    lattice[0, :2], lattice[0, 2:4] = (5, 9), (0.1, 0.7)  # 9 wins
    lattice[1, :2], lattice[1, 2:4], lattice[1, 4:6] = (3, 4), (1.0, 0.0), (0.2, 0.3)
    rows = walk(lattice, 2, 16)
    assert [int(row.argmax()) for row in rows] == [9, 4]
    assert rows[1][3] == pytest.approx(0.2)
    assert np.isinf(rows[0]).sum() == 14
