"""Our steps from logits to a dist, held against llama.cpp's own sampler chain."""

from __future__ import annotations

import ctypes
import math

import llama_cpp
import numpy as np
import pytest

from dspark_gguf.config import Sampling
from dspark_gguf.errors import EngineError
from dspark_gguf.sampling import Sampler, margin, top_probability


class Chain:
    """llama.cpp's chain for `settings`, in the order of its common library, without the draw."""

    def __init__(self, settings, n_vocab):
        self.chain = llama_cpp.llama_sampler_chain_init(
            llama_cpp.llama_sampler_chain_default_params()
        )
        bias = [(token, float(value)) for token, value in settings.logit_bias.items()]
        entries = (llama_cpp.llama_logit_bias * len(bias))(*bias)
        last_n = settings.repeat_last_n if settings.repeat_last_n >= 0 else 10_000
        penalties = (
            settings.repeat_penalty, settings.frequency_penalty, settings.presence_penalty,
        )  # fmt: skip
        for sampler in (
            llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(bias), entries),
            # The first number is the vocabulary's size.
            llama_cpp.llama_sampler_init_penalties(n_vocab, last_n, *penalties),
            llama_cpp.llama_sampler_init_top_k(settings.top_k),
            llama_cpp.llama_sampler_init_typical(settings.typical_p, 0),
            llama_cpp.llama_sampler_init_top_p(settings.top_p, 0),
            llama_cpp.llama_sampler_init_min_p(settings.min_p, 0),
            llama_cpp.llama_sampler_init_temp(settings.temperature),
        ):
            llama_cpp.llama_sampler_chain_add(self.chain, sampler)

    def __call__(self, row, history):
        """Probability of each id that is left."""
        for token in history:
            llama_cpp.llama_sampler_accept(self.chain, token)
        data = (llama_cpp.llama_token_data * len(row))()
        for token, logit in enumerate(row.tolist()):
            data[token].id, data[token].logit = token, logit
        array = llama_cpp.llama_token_data_array(data, len(row), -1, False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        left = {array.data[k].id: array.data[k].logit for k in range(array.size)}
        llama_cpp.llama_sampler_free(self.chain)
        best = max(left.values())
        weights = {token: math.exp(logit - best) for token, logit in left.items()}
        total = math.fsum(weights.values())
        return {token: weight / total for token, weight in weights.items() if weight > 0}


OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
PENALTIES = {"repeat_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.7}
CASES = {
    "nothing": OFF,
    "defaults": {},
    "top_k": {**OFF, "top_k": 7},
    "top_k larger than the vocabulary": {**OFF, "top_k": 5000},
    "top_k with a forbidden token": {**OFF, "top_k": 5000, "logit_bias": {3: "-inf"}},
    "top_p": {**OFF, "top_p": 0.8},
    "min_p": {**OFF, "min_p": 0.1},
    "typical": {**OFF, "typical_p": 0.6},
    "temperature": {**OFF, "temperature": 0.3},
    "hot": {**OFF, "temperature": 2.5, "min_p": 0.02},
    "repeat_penalty": {**OFF, "repeat_penalty": 1.5},
    "frequency and presence": {**OFF, "frequency_penalty": 0.9, "presence_penalty": 0.5},
    "penalties of the last 5": {**OFF, **PENALTIES, "repeat_last_n": 5},
    "penalties of all": {**OFF, **PENALTIES, "repeat_last_n": -1},
    "penalties of none": {**OFF, **PENALTIES, "repeat_last_n": 0},
    "bias": {**OFF, "logit_bias": {0: 3.0, 7: -2.0, 9: "-inf"}},
    "bias and penalty together": {**OFF, **PENALTIES, "logit_bias": dict.fromkeys(range(9), 2.0)},
    "top_k, top_p and min_p": {"top_k": 30, "top_p": 0.9, "min_p": 0.03, "temperature": 0.7},
    "all of it": {
        "top_k": 50, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.01, "temperature": 0.6,
        **PENALTIES, "logit_bias": {3: 4.0, 4: "-inf"},
    },
}  # fmt: skip


def assert_same(settings, row, history):
    """The same ids, and probabilities within 1e-5 of llama.cpp's single precision."""
    ours, theirs = Sampler(settings)(row, history), Chain(settings, len(row))(row, history)
    assert ours.ids.tolist() == sorted(theirs)
    assert abs(ours.probs.sum() - 1.0) < 1e-12
    wanted = [theirs[token] for token in ours.ids.tolist()]
    np.testing.assert_allclose(ours.probs, wanted, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n_vocab", [12, 300, 2000])
def test_each_step_is_llama_cpps(name, n_vocab):
    """12 random rows of each width for each step alone and all together.

    The rows are always the same, so that no probability lies within rounding of a bound today and
    not tomorrow.
    """
    for seed in range(12):
        rng = np.random.default_rng([seed, n_vocab])
        row = rng.normal(0.0, rng.uniform(0.5, 5.0), n_vocab).astype(np.float32)
        history = rng.integers(0, min(n_vocab, 20), size=int(rng.integers(0, 100))).tolist()
        assert_same(Sampling(**CASES[name]), row, history)


def test_random_settings_are_llama_cpps():
    """300 random combinations of all settings, in their order."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        top_k = int(rng.choice([0, 1, 3, 20, 100]))
        settings = Sampling(
            top_k=top_k,
            # Without top-k, llama.cpp's typical computes 0 * log(0) for a forbidden token: NaN.
            typical_p=float(rng.choice([1.0, rng.uniform(0.1, 1)])) if top_k else 1.0,
            top_p=float(rng.choice([1.0, rng.uniform(0.1, 1)])),
            min_p=float(rng.choice([0.0, rng.uniform(0, 0.4)])),
            temperature=float(rng.uniform(0.1, 2.0)),
            repeat_penalty=float(rng.choice([1.0, rng.uniform(0.5, 2)])),
            frequency_penalty=float(rng.choice([0.0, rng.uniform(-1, 1)])),
            presence_penalty=float(rng.choice([0.0, rng.uniform(-1, 1)])),
            repeat_last_n=int(rng.choice([-1, 0, 3, 64])),
            logit_bias=dict.fromkeys(rng.integers(0, 200, 3).tolist(), 4.0)
            | {int(rng.integers(0, 200)): "-inf"},
        )
        row = rng.normal(0.0, 3.0, 200).astype(np.float32)
        assert_same(settings, row, rng.integers(0, 30, size=80).tolist())


def test_typical_leaves_a_forbidden_token_out():
    """The dist is that of a row without the token, where llama.cpp's own turns into NaN."""
    for seed in range(10):
        row = np.random.default_rng(seed).normal(0.0, 3.0, 50).astype(np.float32)
        settings = Sampling(**{**OFF, "typical_p": 0.3}, logit_bias={49: "-inf"})
        ours = Sampler(settings)(row, ())
        theirs = Chain(settings.model_copy(update={"logit_bias": {}}), 49)(row[:49], ())
        found = dict(zip(ours.ids.tolist(), ours.probs.tolist(), strict=True))
        assert found == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("cut", ["top_p", "typical_p"])
def test_a_sum_that_meets_its_bound(cut):
    """Four equal tokens, exact in floats: top-p ends where the sum reaches p, typical above it."""
    row, settings = np.zeros(4, dtype=np.float32), Sampling(**{**OFF, cut: 0.5})
    kept = len(Sampler(settings)(row, ()).ids)
    assert kept == len(Chain(settings, 4)(row, ())) == {"top_p": 2, "typical_p": 3}[cut]


def test_greedy_is_the_best_token_after_bias_and_penalties():
    """Temperature 0: a one-point dist on the arg-max, the first of equals, truncation unseen."""
    row = np.array([1.0, 4.0, 4.0, 3.0], dtype=np.float32)
    assert Sampler(Sampling(temperature=0))(row, ()).ids.tolist() == [1]
    penalised = Sampler(Sampling(temperature=0, repeat_penalty=2.0))
    assert penalised(row, [1, 2]).ids.tolist() == [3]
    biased = Sampler(Sampling(temperature=0, logit_bias={0: 9, 3: "-inf"}))
    assert biased(row, ()).ids.tolist() == [0]


def test_the_row_is_not_written_to():
    """Rows are views into llama.cpp's memory: bias and penalties work on a copy."""
    row = np.arange(5, dtype=np.float32)
    row.flags.writeable = False
    everything = Sampling(repeat_penalty=2.0, logit_bias={1: 5.0}, typical_p=0.5)
    assert Sampler(everything)(row, [4, 4]).ids.size


def test_ignore_eos_forbids_the_end_tokens():
    """Also where they are most probable, beside any other bias, greedy or not."""
    row = np.array([1.0, 2.0, 9.0, 8.0], dtype=np.float32)
    for temperature in (0.0, 1.0):
        settings = Sampling(**{**OFF, "temperature": temperature}, ignore_eos=True)
        dist = Sampler(settings, end_tokens=[2, 3])(row, ())
        assert not {2, 3} & set(dist.ids.tolist())
    assert Sampler(Sampling(temperature=0), end_tokens=[2, 3])(row, ()).top == 2


def test_the_history_is_as_long_as_the_penalties_look_back():
    """No penalty, no history: the loop copies none."""
    tokens = list(range(100))
    assert list(Sampler(Sampling()).history(tokens)) == []
    assert list(Sampler(Sampling(repeat_penalty=2)).history(tokens)) == tokens[-64:]
    assert list(Sampler(Sampling(presence_penalty=1, repeat_last_n=3)).history(tokens)) == [
        97, 98, 99,
    ]  # fmt: skip
    assert list(Sampler(Sampling(frequency_penalty=1, repeat_last_n=-1)).history(tokens)) == tokens
    assert list(Sampler(Sampling(repeat_penalty=2, repeat_last_n=0)).history(tokens)) == []


def test_ids_beyond_the_row_are_ignored():
    """A bias or an earlier token of a larger vocabulary (a draft's row may be shorter)."""
    row = np.array([1.0, 2.0], dtype=np.float32)
    settings = Sampling(temperature=0, repeat_penalty=3.0, logit_bias={7: 100.0})
    assert Sampler(settings)(row, [5, 1, 9]).top == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nan_is_an_error_not_a_token(temperature):
    """A broken model file or kernel must not turn into text."""
    row = np.array([1.0, np.nan, 2.0], dtype=np.float32)
    with pytest.raises(EngineError):
        Sampler(Sampling(temperature=temperature))(row, ())


def test_top_k_keeps_k_of_equal_logits():
    """llama.cpp keeps exactly k whichever of the tied tokens they are."""
    row = np.zeros(5000, dtype=np.float32)
    row[77] = 1.0
    dist = Sampler(Sampling(**{**OFF, "top_k": 6}))(row, ())
    assert len(dist.ids) == 6
    assert dist.top == 77


def test_scores_of_a_row():
    """The p-min score is the softmax's largest value at temperature 1; the margin is in logits."""
    row = np.log(np.array([0.2, 0.5, 0.3], dtype=np.float32))
    assert top_probability(row) == pytest.approx(0.5, rel=1e-6)
    assert margin(row) == pytest.approx(math.log(0.5 / 0.3), rel=1e-6)


def test_penalties_of_all_tokens_read_only_what_is_new():
    """A list that grows, that is cut, another list: the dist of a sampler without a memory."""
    rng, settings = np.random.default_rng(5), Sampling(repeat_penalty=1.3, repeat_last_n=-1)
    sampler, tokens = Sampler(settings), []
    for step in range(60):
        if step % 20 == 19:
            del tokens[int(rng.integers(0, len(tokens))) :]
        if step % 25 == 24:
            tokens = list(tokens[:5])
        tokens += rng.integers(0, 40, int(rng.integers(1, 5))).tolist()
        row = rng.standard_normal(50).astype(np.float32)
        drafted = rng.integers(0, 40, 3).tolist()
        ours, theirs = sampler(row, tokens, drafted), Sampler(settings)(row, [*tokens, *drafted])
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.probs, theirs.probs)
