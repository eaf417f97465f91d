"""Ctrl-C at any place of a step of many conversations: no token is lost, none comes twice."""

from __future__ import annotations

import signal
from functools import partial
from threading import Event

import pytest

from dspark_gguf import Batcher, Limits
from dspark_gguf.signals import held
from tests.crowd import ALWAYS, COPIES, pair_of, prompts, settings_of
from tests.strikes import places, traced

WANTED = [(text, settings_of(k, 0.8 * (k % 2)), 8 + 4 * k) for k, text in enumerate(prompts(4))]


def begun(pair, how, steps):
    """A batcher after so many steps, and its requests; one of them waits."""
    batcher = Batcher(pair, how, parallel=3, patience=1e-6)
    batcher.clear()
    requests = [batcher.submit(text, seed, Limits(max_tokens=most)) for text, seed, most in WANTED]
    for _ in range(steps):
        batcher.step()
    return batcher, requests


@pytest.mark.parametrize("steps", [0, 6])
@pytest.mark.parametrize(("kind", "how"), [("removal", ALWAYS), ("window", COPIES)])
def test_a_step(files, alone, kind, how, steps):
    """While requests are admitted, read, answered and ended."""
    with pair_of(files, kind, 3) as pair:
        batcher, _ = begun(pair, how, steps)
        for at in places(batcher.step, 12):
            batcher, requests = begun(pair, how, steps)
            traced(batcher.step, at, presses=True)
            for request in requests:
                assert not pair.interrupt.is_set()
                committed = request.run.tokens[len(request.prompt) :] if request.run else []
                assert request.answer.tokens == committed, at
            for count, _ in enumerate(batcher):
                assert count < 100, at
            for request, one in zip(requests, WANTED, strict=True):
                assert request.answer.tokens == alone(kind).says(*one), at


def test_a_cancellation(files, alone):
    """The request ends or goes on, and never both."""
    with pair_of(files, "removal", 3) as pair:
        batcher, requests = begun(pair, COPIES, 3)
        for at in places(partial(batcher.cancel, requests[1]), 20):
            batcher, requests = begun(pair, COPIES, 3)
            traced(partial(batcher.cancel, requests[1]), at, presses=True)
            ends = [request for request, round in batcher if round.finish_reason]
            assert sorted(map(id, ends)) == sorted(map(id, requests)), at
            for request, one in zip(requests, WANTED, strict=True):
                text = alone("removal").says(*one)
                if request.answer.finish_reason == "cancelled":
                    text = text[: len(request.answer.tokens)]
                assert request.answer.tokens == text, at


def test_what_is_held_up_hears_of_it():
    """A long prompt that the draft reads in the step is left, and Ctrl-C comes after all."""
    stop, heard = Event(), list[bool]()

    @held(stop)
    def work():
        signal.raise_signal(signal.SIGINT)
        heard.append(stop.is_set())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert heard == [True]
    assert not stop.is_set()
