"""Settings at the ends of their ranges and beyond: refused by name, or they mean something."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.chat.session import Session
from dspark_gguf.cli import main
from dspark_gguf.errors import EngineError, UsageError
from dspark_gguf.sampling import NothingLeftError, Sampler
from dspark_gguf.settings_files import load_settings, validate
from tests.tiny.test_block import BLOCKS
from tests.tiny_dflash import write_dflash
from tests.tiny_gguf import Tiny, write_llama

REFUSED = [
    ("logit_bias.-1", {"logit_bias": {-1: 1.0}}),
    ("logit_bias.-60000", {"logit_bias": {"-60000": 1.0}}),
    ("logit_bias.1000000000000", {"logit_bias": {10**12: 1.0}}),
    ("logit_bias.five", {"logit_bias": {"five": 1.0}}),
    *[
        ("logit_bias.5", {"logit_bias": {5: value}})
        for value in (1e39, "1e39", -1e39, "nan", "inf", math.inf, math.nan, "x", None)
    ],
    *[("temperature", {"temperature": value}) for value in (-1e-310, 1e39, "nan", "inf")],
    *[("repeat_penalty", {"repeat_penalty": value}) for value in (0, 1e-300, -1, 1e39, "nan")],
    *[("frequency_penalty", {"frequency_penalty": value}) for value in (1e39, "-inf")],
    *[("presence_penalty", {"presence_penalty": value}) for value in (1e39, "nan")],
    *[("top_p", {"top_p": value}) for value in (0, 1 + 1e-9, "nan")],
    *[("min_p", {"min_p": value}) for value in (-1e-310, 1 + 1e-9, "nan")],
    ("repeat_last_n", {"repeat_last_n": -2}),
    ("seed", {"seed": 2**64}),
]


@pytest.mark.parametrize(("place", "tree"), REFUSED)
def test_refused_by_name(place, tree):
    """When they are read, with the place as the user wrote it, and no word of pydantic's."""
    with pytest.raises(UsageError, match=rf"^sampling\.{place} in the options is "):
        validate({"sampling": tree}, "the options")


WIDTH = 12
LAWS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 100),
        "top_k": st.integers(0, 10**30),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "repeat_penalty": st.floats(0.01, 100),
        "frequency_penalty": st.floats(-100, 100),
        "presence_penalty": st.floats(-100, 100),
        "repeat_last_n": st.integers(-1, 10**30),
        "ignore_eos": st.booleans(),
        "logit_bias": st.dictionaries(
            st.integers(0, WIDTH - 1), st.one_of(st.floats(-1e9, 1e9), st.just("-inf"))
        ),
    },
)
LOGITS = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(-math.inf), st.just(1.5))


@settings(max_examples=150, deadline=None)
@given(
    dist=LAWS,
    row=st.lists(LOGITS, min_size=WIDTH, max_size=WIDTH),
    history=st.lists(st.integers(0, WIDTH - 1), max_size=9),
)
@example(dist={"temperature": 5e-324}, row=[1.5] * WIDTH, history=[])
@example(dist={"temperature": 1e-310, "top_p": 1e-310}, row=[1.5, 2.5] * 6, history=[])
@example(dist={"logit_bias": dict.fromkeys(range(WIDTH), "-inf")}, row=[1.5] * WIDTH, history=[])
def test_every_law_is_one(dist, row, history):
    """Probabilities that sum to 1, of tokens that are not forbidden; or nothing is left."""
    chosen = Sampling.model_validate(dist)
    forbidden = {token for token, bias in chosen.logit_bias.items() if bias == "-inf"}
    forbidden |= {3} if chosen.ignore_eos else set()
    forbidden |= {token for token, logit in enumerate(row) if logit == -math.inf}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = Sampler(chosen, [3])(np.array(row, dtype=np.float32), history)
        except NothingLeftError:
            assert len(forbidden) == WIDTH
            return
    assert not forbidden & set(found.ids.tolist())
    assert (found.probs >= 0).all()
    assert found.probs.sum() == pytest.approx(1.0)
    assert found.draw(np.random.default_rng(0)) in range(WIDTH)


def test_the_lowest_temperatures_are_the_limit():
    """All on the best token; those that tie with it have the same share."""
    row = np.array([1.0, 3.0, 2.9999, 3.0, -5.0], dtype=np.float32)
    open_ = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for temperature in (1e-6, 1e-300, 1e-310, 5e-324):
        dist = Sampler(Sampling(temperature=temperature, **open_))(row, ())
        probs = [dist.prob(token) for token in range(5)]
        assert probs == pytest.approx([0.0, 0.5, 0.0, 0.5, 0.0], abs=1e-30)


def test_infinite_logits_are_the_models_fault():
    """Said as such, not as an overflow in the middle."""
    row = np.array([1.0, math.inf], dtype=np.float32)
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError, match="inf instead of a finite logit"):
            Sampler(Sampling(temperature=temperature))(row, ())


ALL = dict.fromkeys(range(263), "-inf")
NOT_HERE = {
    "an id beyond the vocabulary": ({"logit_bias": {263: 1.0}}, "token 263 in logit_bias.*263"),
    "everything forbidden": ({"logit_bias": ALL}, "no token is allowed next: all of them"),
    "all but the end": (
        {"logit_bias": dict.fromkeys(range(260), "-inf"), "ignore_eos": True}, "no token is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_HERE)
@pytest.mark.parametrize("speculation", [Speculation(mode="off"), Speculation(learn=False)])
def test_what_a_vocabulary_does_not_allow(tiny_files, what, speculation):
    """Known when the model is: a decoder, a chat's `/set` and a command refuse it at once."""
    sampling, message = NOT_HERE[what]
    if what == "all but the end":
        sampling = {**sampling, "logit_bias": {**sampling["logit_bias"], 261: "-inf"}}
    with load_pair(tiny_files.target) as pair:
        with pytest.raises(UsageError, match=message):
            Decoder.for_pair(pair, Sampling.model_validate(sampling), speculation)
        session = Session(pair, load_settings(None, {}))
        before = session.settings
        with pytest.raises(UsageError, match=message):
            session.update({"sampling": sampling})
        assert session.settings is before


def test_a_command_refuses_it_before_it_measures(tiny_files):
    """Exit code 2, no answer."""
    words = ["run", "hi", "-m", str(tiny_files.target), "--logit-bias", "1000000000+1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert (
        "token 1000000000 in logit_bias is not in the vocabulary. Give ids below 263."
        in result.stderr
    )
    assert "measuring" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["dflash2", "model", "lookup"])
def test_drafts_of_which_nothing_is_allowed(tiny_files, tmp_path, kind, temperature):
    """A draft may know no token that is allowed: then it drafts none."""
    padding, allowed = (0, {5, 6}) if kind == "dflash2" else (8, {265, 266})
    target = write_llama(tmp_path / "target.gguf", Tiny(padding=padding))
    draft = {
        "dflash2": lambda: write_dflash(tmp_path / "draft.gguf", BLOCKS["dflash2"]),
        "model": lambda: tiny_files.draft,
        "lookup": lambda: None,
    }[kind]()
    bias = {token: "-inf" for token in range(263 + padding) if token not in allowed}
    sampling = Sampling(temperature=temperature, logit_bias=bias, seed=1)
    speculation = Speculation(mode="on", draft_min_prob=0.0, draft_max=4)
    with load_pair(target, draft) as pair:
        wanted, answer = (
            Decoder.for_pair(pair, sampling, each).answer([1, 2], Limits(max_tokens=12))
            for each in (Speculation(mode="off"), speculation)
        )
    assert answer.tokens == wanted.tokens
    assert set(answer.tokens) <= allowed


def test_a_second_first_token_is_told(tmp_path):
    """`run --raw` of a text that spells the token which is put before it anyway."""
    for add_bos in (False, True):
        path = write_llama(tmp_path / f"{add_bos}.gguf", Tiny(add_bos=add_bos, add_eos=True))
        words = ["run", "--raw", "--json", "-n", "1", "-m", str(path), "--spec", "off"]
        twice = CliRunner().invoke(main, [*words, "<|endoftext|>abc"])
        once = CliRunner().invoke(main, [*words, "abc"])
        counts = [json.loads(result.stdout)["usage"]["prompt_tokens"] for result in (once, twice)]
        assert counts == [3 + add_bos, 4 + add_bos]
        note = "the prompt begins with <|endoftext|> twice"
        assert [result.stderr.count(note) for result in (once, twice)] == [0, int(add_bos)]
