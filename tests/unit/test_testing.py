"""The fakes themselves: a fake that forgives would hide the bugs it is there to show."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dspark_gguf.dist import Dist
from dspark_gguf.engine.protocol import prefill
from dspark_gguf.errors import ResourceError
from dspark_gguf.testing import (
    ByteTokenizer,
    Misuse,
    TableModel,
    agreeing_rows,
    distribution_of,
    random_rows,
    reciting_rows,
)
from tests.fakes import rows_of


def test_every_byte_has_a_token_and_text_comes_back():
    """Text survives the tokens, whatever its script."""
    tokenizer = ByteTokenizer()
    text = "naïve 日本 🦜\0"
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
    assert {tokenizer.piece(token) for token in range(256)} == {bytes([b]) for b in range(256)}
    assert tokenizer.piece(tokenizer.end) == b""


def test_a_row_depends_on_every_token_before_it():
    """One wrong token anywhere in the cache changes every later row."""
    rows = random_rows(5, seed=3)
    prefix = (0, 1, 2, 3, 4, 0)
    for k in range(len(prefix)):
        other = (*prefix[:k], (prefix[k] + 1) % 5, *prefix[k + 1 :])
        assert not np.array_equal(rows(prefix), rows(other))
    assert np.array_equal(rows(prefix), random_rows(5, seed=3)(prefix))
    assert not np.array_equal(rows(prefix), random_rows(5, seed=4)(prefix))


def test_the_cache_keeps_only_a_common_prefix():
    """`prefill` reads what is new, `reuse_prefix` reads nothing, and each pass is counted."""
    model = TableModel(random_rows(9))
    assert prefill(model, [1, 2, 3, 4]) == 0
    assert prefill(model, [1, 2, 5, 6, 7]) == 2
    assert model.reuse_prefix([1, 2, 5, 6, 7, 8]) == 5
    assert model.reuse_prefix([1, 3]) == 1
    assert prefill(model, [1]) == 1
    assert model.tokens == [1]
    assert model.passes == [4, 3]


def test_rows_are_those_of_the_last_tokens():
    """Row k follows the k-th of the wanted tokens, in a chunk as token by token."""
    rows = random_rows(9)
    model = TableModel(rows)
    prefill(model, [1, 2])
    chunk = model.decode([3, 4, 5], 2)
    assert len(chunk) == 2
    assert np.array_equal(chunk[0], rows((1, 2, 3, 4)))
    assert np.array_equal(chunk[1], rows((1, 2, 3, 4, 5)))
    with pytest.raises(IndexError):
        chunk[2]
    assert model.rows_read == 2


def test_rows_die_with_the_next_pass():
    """llama.cpp overwrites its logits: neither old `Rows` nor a row kept from them may be used."""
    model = TableModel(random_rows(9))
    old = rows_of(model, [1, 2])
    kept = old[0]
    model.trim(1)
    assert not np.isnan(old[1]).any()
    prefill(model, [1, 2])
    with pytest.raises(Misuse):
        old[0]
    assert np.isnan(kept).all()


def test_rows_are_not_to_be_written_to():
    """Rows are views into memory that is not ours."""
    row = rows_of(TableModel(random_rows(9)), [1])[0]
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 1.0


@pytest.mark.parametrize(
    "misuse",
    [
        lambda model: rows_of(model, []),
        lambda model: rows_of(model, [9]),
        lambda model: rows_of(model, [-1]),
        lambda model: model.decode([1], 2),
        lambda model: model.decode([], 1),
        lambda model: rows_of(model, [1, 2, 3, 4]),
        lambda model: model.trim(-1),
    ],
)
def test_what_llama_cpp_would_not_survive_is_refused(misuse):
    """A drafter that passes its tests here does not crash llama.cpp."""
    with pytest.raises(Misuse):
        misuse(TableModel(random_rows(9), max_rows=3))


def test_a_full_cache_is_an_error_and_changes_nothing():
    """The cache takes `n_ctx` tokens and not one more."""
    model = TableModel(random_rows(9), n_ctx=3)
    prefill(model, [1, 2, 3])
    with pytest.raises(ResourceError):
        rows_of(model, [4])
    assert (model.tokens, model.passes) == ([1, 2, 3], [3])


@pytest.mark.parametrize("agreement", [0.0, 0.3, 1.0])
def test_a_draft_agrees_as_often_as_asked(agreement):
    """Best tokens coincide after the wanted share of prefixes, and never by chance.

    2,000 independent prefixes: a share off by 0.05 is 4.9 standard deviations at 0.3 (1e-6), and
    the prefixes are always the same.
    """
    target = random_rows(4)
    draft = agreeing_rows(target, agreement)
    prefixes = [(a, b) for a in range(50) for b in range(40)]
    same = [target(prefix).argmax() == draft(prefix).argmax() for prefix in prefixes]
    assert abs(np.mean(same) - agreement) <= (0.05 if agreement == 0.3 else 0.0)


def test_a_reciting_model_says_its_text():
    """The next token of the text, the end token after it, token 0 off the text."""
    rows = reciting_rows([3, 1, 4], 6, end=5)
    assert [int(rows(prefix).argmax()) for prefix in ((), (3,), (3, 1), (3, 1, 4))] == [3, 1, 4, 5]
    assert int(rows((2, 1)).argmax()) == 0


def test_the_law_of_draws_is_found_without_drawing():
    """Comparisons, several draws, an early end, and the way `Dist.draw` looks up its token."""
    dist = Dist(np.array([2, 5, 7]), np.array([0.25, 0.5, 0.25]))
    assert distribution_of(dist.draw) == {2: Fraction(1, 4), 5: Fraction(1, 2), 7: Fraction(1, 4)}

    def coins(rng):
        first = rng.random()
        if first < 0.5:
            return "low" if first < 0.125 else "middle"
        return "high" if rng.random() * 2.0 > 0.5 else "higher"

    eighth = Fraction(1, 8)
    assert distribution_of(coins) == {
        "low": eighth, "middle": 3 * eighth, "high": 3 * eighth, "higher": eighth,
    }  # fmt: skip
