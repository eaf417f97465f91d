"""Every kind of memory takes back what was rejected: plain decoding's text, token for token."""

from __future__ import annotations

from itertools import cycle
from threading import Event

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine import memory
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.memory import Footprint
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.sequence import open_cache
from dspark_gguf.schedule import Fixed
from tests.fakes import Scripted
from tests.tiny_gguf import Tiny
from tests.tiny_kinds import WINDOW, WRITERS

#: What each kind of model is loaded with, and how it then takes back tokens.
KINDS = {
    "llama": ("llama", True, "removal"),
    "gemma3": ("gemma3", True, "removal"),
    "gemma3, window": ("gemma3", False, "window"),
    "mamba": ("mamba", True, "replay"),
    "rwkv7": ("rwkv7", True, "replay"),
    "lfm2": ("lfm2", True, "snapshots"),
    "qwen35": ("qwen35", True, "snapshots"),
    "qwen3next": ("qwen3next", True, "replay"),
}
RECURRENT = ("mamba", "rwkv7", "lfm2", "qwen35", "qwen3next")
EXACT = {
    "n_ctx": 1024, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
#: A penalty keeps random models from saying one thing for ever, which any state would do for.
GREEDY = Sampling(temperature=0, ignore_eos=True, repeat_penalty=1.8, repeat_last_n=64)
PLAIN = Speculation(mode="off")
PROMPT = [10, 20, 30, 40, 50, 60, 70, 80]
#: F32 rows of the same tokens, computed in passes of other sizes.
CLOSE = {"rtol": 0, "atol": 2e-3}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of every kind, and a draft for it that is the same with a little noise."""
    folder = tmp_path_factory.mktemp("kinds")
    noisy = Tiny(context=1024, noise=0.05)
    return {
        name: (write(folder / f"{name}.gguf"), write(folder / f"{name}-draft.gguf", noisy))
        for name, write in WRITERS.items()
    }


def pair_of(files, kind, draft=None, **options):
    """A target of this kind, with or without a draft of another."""
    name, whole, _ = KINDS[kind]
    drafts = None if draft is None else files[KINDS[draft][0]][1]
    whole_draft = draft is None or KINDS[draft][1]
    return load_pair(
        files[name][0],
        drafts,
        target_options=ModelOptions(**{**EXACT, "swa_full": whole, **options}),
        draft_options=DraftOptions(**{**EXACT, "swa_full": whole_draft}),
    )


def plain_text(pair, prompt, count):
    decoder = Decoder.for_pair(pair, GREEDY, PLAIN)
    return [*prompt, *decoder.answer(prompt, Limits(max_tokens=count)).tokens]


def scripted(pair, text, length, depths):
    decoder = Decoder.for_pair(pair, GREEDY, PLAIN)
    decoder.drafter = Scripted(text, length, depths)
    decoder.stopping_rule = Fixed(length)
    return decoder


def state_bytes(pair):
    return Footprint(read_header(pair.target.path), pair.target.options).state_bytes


def fresh_rows(pair, tokens, last):
    """Rows of the `last` tokens, from a context that never held anything else."""
    cache = pair.target_cache
    context = open_cache(pair.target, cache.n_ctx, cache.max_rows, Event())
    rows = context.decode(tokens, last)
    out = np.stack([rows[k].copy() for k in range(last)])
    context.close()
    return out


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_size_of_a_state_is_what_llama_cpp_saves(files, kind):
    """The arithmetic that decides how many snapshots there are, up to a header for each layer."""
    with pair_of(files, kind) as pair:
        prefill(pair.target_cache, PROMPT)
        saved = len(pair.target_cache._rollback.checkpoints[-1].data)
        assert (
            0
            < saved - Footprint(read_header(pair.target.path), pair.target.options).state_bytes
            < 300
        )


def test_few_snapshots_of_a_large_state(files, monkeypatch):
    """They take at most an eighth of what the weights take; drafts are then no longer than that."""
    with pair_of(files, "qwen35") as pair:
        state = state_bytes(pair)
    monkeypatch.setattr(memory, "_SNAPSHOT_BYTES", 3.5 * state)
    monkeypatch.setattr(memory, "_SNAPSHOT_SHARE", 0.0)
    with pair_of(files, "qwen35") as pair:
        assert pair.target_cache.max_rows == 4
        text = plain_text(pair, PROMPT, 60)
        decoder = scripted(pair, text, 12, cycle([2, 0, 12, 1]))
        rounds = list(decoder.generate(PROMPT, Limits(max_tokens=60)))
        assert max(round.drafted for round in rounds) == 3
        assert [token for round in rounds for token in round.tokens] == text[len(PROMPT) :]
        assert pair.max_drafts == 3
    monkeypatch.setattr(memory, "_SNAPSHOT_BYTES", 0.5 * state)
    with pair_of(files, "qwen35") as pair:
        assert pair.target_cache.rollback == "replay"
        assert pair.target_cache.max_rows == 65


@pytest.mark.parametrize("kind", KINDS)
def test_rejections_at_every_depth(files, kind):
    """Drafts of 1 to 16 tokens, wrong at each of their places in turn, or nowhere; 640 tokens."""
    with pair_of(files, kind) as pair:
        assert pair.target_cache.rollback == KINDS[kind][2]
        text = plain_text(pair, PROMPT, 640)
        at, depths_seen = len(PROMPT), set()
        for length in (1, 2, 3, 5, 8, 16):
            decoder = scripted(pair, text, length, cycle(range(length, -1, -1)))
            count = 10 * length + 20
            said = []
            for round in decoder.generate(text[:at], Limits(max_tokens=count)):
                said += round.tokens
                depths_seen.add((round.drafted, round.accepted))
            assert said == text[at : at + count]
            at += count // 2
        for length in (1, 2, 3, 5, 8, 16):
            assert depths_seen >= {(length, accepted) for accepted in range(length + 1)}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_after_any_rejection_are_those_of_a_fresh_context(files, kind):
    """Not only the best token: every logit, also far beyond the sliding window."""
    with pair_of(files, kind) as pair:
        text = plain_text(pair, PROMPT, 300)
        decoder = scripted(pair, text, 7, cycle([0, 3, 6, 7, 1, 5]))
        committed = list(PROMPT)
        for round in decoder.generate(PROMPT, Limits(max_tokens=300)):
            committed += round.tokens
            if len(committed) % 5 == 0:
                target = pair.target_cache
                row = target.decode(committed[target.length :], 1)[0].copy()
                np.testing.assert_allclose(row, fresh_rows(pair, committed, 1)[0], **CLOSE)
                target.trim(len(committed) - 1)
        assert len(committed) > 6 * WINDOW


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_draft(files, kind):
    """A draft of this kind, mostly right: its cache is that of a fresh context, round by round."""
    with pair_of(files, kind, draft=kind) as pair:
        text = plain_text(pair, PROMPT, 400)
        speculation = Speculation(
            mode="on", draft_min_prob=0.0, draft_max=6, drafter="model", acceptance="match"
        )
        decoder = Decoder.for_pair(pair, GREEDY, speculation)
        committed, accepted, draft = list(PROMPT), set(), pair.draft_cache()
        for round in decoder.generate(PROMPT, Limits(max_tokens=400)):
            committed += round.tokens
            accepted.add(round.accepted)
            assert draft.tokens == committed[: draft.length]
            assert draft.length <= len(committed) - 1
        assert committed == text
        assert len(accepted) > 3
        row = draft.decode(committed[draft.length :], 1)[0].copy()
        again = open_cache(draft.model, draft.n_ctx, 1, Event())
        np.testing.assert_allclose(row, again.decode(committed, 1)[0], **CLOSE)
        again.close()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_a_draft_of_another_kind(files, kind):
    """Copies and looks in one draft: on this target, with the next kind as the draft."""
    names = list(KINDS)
    other = names[(names.index(kind) + 3) % len(names)]
    with pair_of(files, kind, draft=other) as pair:
        text = plain_text(pair, PROMPT * 3, 250)
        speculation = Speculation(mode="auto", learn=False, draft_max=6)
        decoder = Decoder.for_pair(pair, GREEDY, speculation)
        assert decoder.answer(PROMPT * 3, Limits(max_tokens=250)).tokens == text[24:]


@pytest.mark.parametrize("kind", KINDS)
def test_after_editing_an_earlier_turn(files, kind):
    """Eight turns; each third one cuts into an earlier turn. Plain decoding's text each time."""
    rng = np.random.default_rng(3)
    with pair_of(files, kind) as pair:
        conversation: list[int] = []
        for turn in range(9):
            kept = int(rng.integers(1, len(conversation))) if turn % 3 == 2 else len(conversation)
            conversation = [*conversation[:kept], *rng.integers(0, 250, 20).tolist()]
            decoder = scripted(pair, [], 4, cycle([0]))
            wanted = fresh_text(files, kind, conversation, 40)
            decoder.drafter = Scripted(wanted, 4, cycle([0, 2, 4, 1, 3]))
            answer = decoder.answer(conversation, Limits(max_tokens=40))
            assert answer.tokens == wanted[len(conversation) :]
            conversation += answer.tokens


def fresh_text(files, kind, prompt, count):
    with pair_of(files, kind) as pair:
        return plain_text(pair, prompt, count)


@pytest.mark.parametrize("kind", RECURRENT)
def test_an_edit_does_not_read_everything_again(files, kind):
    """A mark at the end of each prompt, and in long ones: what is read again is a turn."""
    with pair_of(files, kind, n_batch=64) as pair:
        cache = pair.target_cache
        long = [k % 250 for k in range(600)]
        prefill(cache, long)
        cache.decode(range(40), 0)
        assert prefill(cache, long) == 600  # regenerate: the end of the prompt
        edited = [*long[:580], 1, 2, 3]
        assert prefill(cache, edited) >= 580 - 64
        assert prefill(cache, [*long[:300], 9]) >= 300 - 3 * 64  # fewer marks further back
        assert len(cache._rollback.checkpoints) <= 8
