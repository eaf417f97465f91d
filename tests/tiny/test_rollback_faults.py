"""Rollback after an interruption, and what a wrong state would do."""

from __future__ import annotations

from itertools import cycle

import llama_cpp
import numpy as np
import pytest

from dspark_gguf import Decoder, Limits
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.engine.rollback import Rollback
from tests.fakes import restore_stale
from tests.tiny.test_rollback import (
    CLOSE,
    GREEDY,
    KINDS,
    PLAIN,
    PROMPT,
    RECURRENT,
    files,
    fresh_rows,
    pair_of,
    plain_text,
    scripted,
)

__all__ = ["files"]  # fixtures


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_answer_leaves_a_true_cache(files, kind):
    """Closed after any round, also one whose draft was rejected."""
    with pair_of(files, kind) as pair:
        text = plain_text(pair, PROMPT, 60)
        for rounds in range(1, 8):
            decoder = scripted(pair, text, 5, cycle([2, 0, 5, 1]))
            committed = list(PROMPT)
            for k, round in enumerate(decoder.generate(PROMPT, Limits(max_tokens=50))):
                committed += round.tokens
                if k == rounds:
                    break
            plain = Decoder.for_pair(pair, GREEDY, PLAIN)
            rest = plain.answer(committed, Limits(max_tokens=20)).tokens
            assert rest == text[len(committed) : len(committed) + 20]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_in_any_pass(files, kind, late, monkeypatch):
    """It may strike before llama.cpp decodes or right after: what follows is plain decoding's."""
    real = llama_cpp.llama_decode
    with pair_of(files, kind) as pair:
        text = plain_text(pair, PROMPT, 80)
        for strike in range(1, 12):
            calls = iter(range(1, 1000))

            def struck(*arguments, calls=calls, strike=strike):
                hit = next(calls) == strike
                if hit and not late:
                    raise KeyboardInterrupt
                status = real(*arguments)
                if hit:
                    raise KeyboardInterrupt
                return status

            committed = list(PROMPT)
            decoder = scripted(pair, text, 5, cycle([2, 0, 5, 1]))
            monkeypatch.setattr(llama_cpp, "llama_decode", struck)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - anywhere in it
                for round in decoder.generate(PROMPT, Limits(max_tokens=60)):
                    committed += round.tokens
            monkeypatch.setattr(llama_cpp, "llama_decode", real)
            plain = Decoder.for_pair(pair, GREEDY, PLAIN)
            rest = plain.answer(committed, Limits(max_tokens=12)).tokens
            assert rest == text[len(committed) : len(committed) + 12]


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_wrong_state_is_noticed(files, kind, monkeypatch):
    """With the state of the prompt's end at the place of a later one, the texts part."""
    real = Rollback.back

    def stale(self, length, held):
        length = real(self, length, held)
        if length > len(PROMPT) - 1:
            restore_stale(self, length)
        return length

    with pair_of(files, kind) as pair:
        text = plain_text(pair, PROMPT, 80)
        monkeypatch.setattr(Rollback, "back", stale)
        decoder = scripted(pair, text, 5, cycle([2, 5, 1]))
        assert decoder.answer(PROMPT, Limits(max_tokens=60)).tokens != text[8:68]


def test_a_window_that_is_gone_is_noticed(files, monkeypatch):
    """llama.cpp removes what it is told to; the window before it is our business."""
    tokens = [k % 250 for k in range(700)]
    with pair_of(files, "gemma3, window", n_ubatch=64) as pair:
        cache, wanted = pair.target_cache, fresh_rows(pair, tokens[:301], 1)[0]
        for trusting in (False, True):
            if trusting:
                monkeypatch.setattr(Rollback, "_reaches", lambda *_: True)
            prefill(cache, tokens)
            cache.trim(300)
            row = cache.decode(tokens[cache.length : 301], 1)[0]
            assert np.allclose(row, wanted, **CLOSE) is not trusting
