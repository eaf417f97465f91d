"""Conversations that come and go in one pass, held against each of them alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dspark_gguf import Batcher, Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions
from tests.tiny_gguf import Tiny
from tests.tiny_kinds import WRITERS

EXACT = {
    "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
#: Kind of memory -> model, whether a sliding window is kept whole.
KINDS = {
    "removal": ("llama", True), "window": ("gemma3", False), "replay": ("mamba", True),
    "snapshots": ("qwen35", True), "hybrid replay": ("qwen3next", True),
}  # fmt: skip
#: A penalty keeps random models from saying one thing for ever.
LIVELY = {"ignore_eos": True, "repeat_penalty": 1.5, "repeat_last_n": 32}
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=3, learn=False)
LEARNED = Speculation(learn=False)
COPIES = Speculation(drafter="lookup", learn=False)


def write_models(folder):
    """A model of every kind, and a draft for it that is the same with a little noise."""
    noisy = Tiny(context=1024, noise=0.05)
    return {
        name: (write(folder / f"{name}.gguf"), write(folder / f"{name}-draft.gguf", noisy))
        for name, write in WRITERS.items()
    }


def pair_of(files, kind, conversations, n_ctx=1024, draft=True, **options):
    name, whole = KINDS[kind]
    target, small = files[name]
    return load_pair(
        target,
        small if draft else None,
        target_options=ModelOptions(n_ctx=n_ctx, swa_full=whole, **EXACT, **options),
        draft_options=DraftOptions(swa_full=whole, **EXACT),
        conversations=conversations,
    )


def settings_of(k, temperature):
    return Sampling(temperature=temperature, seed=k, **LIVELY)


def prompts(count, seed=1, shared=20):
    """Prompts that begin alike, of different lengths."""
    rng = random.Random(seed)
    common = [rng.randrange(10, 250) for _ in range(shared)]
    return [
        [*common, *(rng.randrange(10, 250) for _ in range(rng.randrange(1, 40)))]
        for _ in range(count)
    ]


class Alone:
    """What each prompt's answer is without any other, from an independent plain decoder."""

    def __init__(self, files, kind):
        self.pair = pair_of(files, kind, 1, draft=False)
        self.known = {}

    def says(self, prompt, sampling, most):
        key = (tuple(prompt), sampling.seed, sampling.temperature, most)
        if key not in self.known:
            off = Speculation(mode="off")
            decoder = Decoder.for_pair(self.pair, sampling, off)
            decoder.reset()
            self.known[key] = decoder.answer(prompt, Limits(max_tokens=most)).tokens
        return self.known[key]


@dataclass
class Life:
    """What happened in a random life."""

    rounds: int = 0
    done: int = 0
    cancelled: int = 0
    tokens: int = 0


def live(pair, alone, steps, seed=7, how=LEARNED):
    """Requests come, are cancelled and end at random; each text is checked when it ends.

    Between its end and the next one's beginning, the last step adds nothing.
    """
    rng, life = random.Random(seed), Life()
    batcher = Batcher(pair, how, parallel=3, patience=1e-6)
    going, texts = [], prompts(30, seed=5)

    def check():
        for request, one in [each for each in going if each[0].is_over]:
            assert request.error is None
            assert request.answer.finish_reason in ("length", "cancelled")
            text = alone.says(*one)
            if request.answer.finish_reason == "cancelled":
                life.cancelled += 1
                text = text[: len(request.answer.tokens)]
            assert request.answer.tokens == text
            life.done += 1
            life.tokens += len(text)
            going[:] = [each for each in going if each[0] is not request]

    for _ in range(steps):
        if len(going) < 6 and rng.random() < 0.3:
            k = rng.randrange(len(texts))
            one = texts[k], settings_of(k % 5, rng.choice([0.0, 0.8])), rng.choice([5, 40, 90])
            going.append((batcher.submit(one[0], one[1], Limits(max_tokens=one[2])), one))
        if going and rng.random() < 0.02:
            batcher.cancel(rng.choice(going)[0])
        batcher.step()
        life.rounds += 1
        check()
    list(batcher)
    check()
    assert not going
    return life
