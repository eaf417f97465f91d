"""Contexts on a tiny model: what the cache holds is what it says it holds."""

from __future__ import annotations

from threading import Event

import llama_cpp
import numpy as np
import pytest

from dspark_gguf.config import ModelOptions
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.memory import Footprint
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.protocol import common_prefix, prefill
from dspark_gguf.engine.sequence import open_cache
from dspark_gguf.errors import Cancelled, EngineError, ResourceError
from tests.fakes import rows_of

TEXT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
#: F32 rows of one token, computed in batches of other sizes.
CLOSE = {"rtol": 0, "atol": 1e-3}


@pytest.fixture(scope="module")
def model(tiny_files):
    return Model(tiny_files.target, ModelOptions(n_batch=32))


@pytest.fixture
def context(model):
    return open_cache(model, n_ctx=128, max_rows=10, interrupt=Event())


def fresh_row(model, tokens):
    """The row after `tokens`, from a context that never held anything else."""
    context = open_cache(model, n_ctx=128, max_rows=10, interrupt=Event())
    prefill(context, tokens[:-1])
    return rows_of(context, tokens[-1:])[0].copy()


def footprint(model):
    return Footprint(read_header(model.path), model.options)


def test_rows_are_those_of_each_position(model, context):
    """Row k of a pass follows the k-th token, whatever came in the same pass."""
    prefill(context, TEXT[:4])
    rows = rows_of(context, TEXT[4:])
    assert len(rows) == 6
    for k in range(6):
        np.testing.assert_allclose(rows[k], fresh_row(model, TEXT[: 5 + k]), **CLOSE)
    with pytest.raises(IndexError):
        rows[6]


def test_trim_takes_back_what_was_decoded(model, context):
    """After a trim the cache goes on as if the rest had never been there."""
    prefill(context, TEXT)
    context.trim(3)
    assert context.tokens == TEXT[:3]
    context.trim(50)
    assert context.length == 3
    row = rows_of(context, [99])[0]
    np.testing.assert_allclose(row, fresh_row(model, [*TEXT[:3], 99]), **CLOSE)


def test_restart_reuses_the_common_prefix(context):
    """Only what differs is decoded again, and the count of reused tokens is returned."""
    assert prefill(context, TEXT) == 0
    assert prefill(context, TEXT) == 10
    assert prefill(context, [*TEXT[:6], 7, 7]) == 6
    assert context.tokens == [*TEXT[:6], 7, 7]
    assert prefill(context, TEXT[:2]) == 2
    assert prefill(context, [5]) == 0
    assert prefill(context, []) == 0


def test_prompts_longer_than_a_batch(model, context):
    """A long prompt is read in batches; the rows that are wanted lie in the last one."""
    long = [k % 250 for k in range(100)]
    row = context.decode(long, 1)[0]
    np.testing.assert_allclose(row, fresh_row(model, long), **CLOSE)
    context.trim(0)
    rows = context.decode(long[:68], 9)  # 4 + 32 + 32: the nine rows are in the last batch
    np.testing.assert_allclose(rows[8], fresh_row(model, long[:68]), **CLOSE)
    np.testing.assert_allclose(rows[0], fresh_row(model, long[:60]), **CLOSE)


def test_batch_smaller_than_a_draft(tiny_files):
    """A user's tiny --batch-size does not keep a draft from being verified in one pass."""
    small = Model(tiny_files.target, ModelOptions(n_batch=2, n_ubatch=2))
    context = open_cache(small, n_ctx=64, max_rows=10, interrupt=Event())
    rows = rows_of(context, TEXT[:9])
    np.testing.assert_allclose(rows[8], fresh_row(small, TEXT[:9]), **CLOSE)


def test_rows_are_views_without_a_copy(context):
    """Reading a row twice gives the same memory."""
    row = rows_of(context, [1, 2])[1]
    again = rows_of(context, [3])[0]
    assert row.shape == (context.n_vocab,) == again.shape
    assert rows_of(context, [4])[0].ctypes.data == rows_of(context, [5])[0].ctypes.data


def test_a_full_cache_is_refused_before_the_pass(context):
    """More tokens than the context holds: an error with both numbers, and nothing decoded."""
    prefill(context, TEXT)
    with pytest.raises(ResourceError, match=r"130 tokens.*128"):
        prefill(context, [*TEXT, *range(120)])
    assert context.tokens == TEXT


def test_an_exception_between_pass_and_books_leaves_a_clean_cache(model, context, monkeypatch):
    """Ctrl-C may strike after llama.cpp decoded and before we noted it: restart repairs that."""
    prefill(context, TEXT[:4])
    real = llama_cpp.llama_decode

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp, "llama_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows_of(context, [200, 201])
    monkeypatch.undo()
    assert context.tokens == TEXT[:4]
    assert prefill(context, TEXT[:5]) == 4
    row = rows_of(context, TEXT[5:6])[0]
    np.testing.assert_allclose(row, fresh_row(model, TEXT[:6]), **CLOSE)


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (1, ResourceError, r"cache of 128 tokens is full\. Use a larger --ctx-size\."),
        (-1, EngineError, r"status -1 \(no reason given\)\. Try again"),
    ],
)
def test_a_failed_pass_is_translated(model, context, monkeypatch, status, error, text):
    """llama.cpp's status becomes an error that says what to do; the next restart works."""
    prefill(context, TEXT[:4])
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda *_: status)
    with pytest.raises(error, match=text):
        rows_of(context, [200])
    monkeypatch.undo()
    prefill(context, TEXT[:5])
    np.testing.assert_allclose(rows_of(context, [60])[0], fresh_row(model, TEXT[:6]), **CLOSE)


def test_interrupt_stops_between_batches(model):
    """A long prompt is given up at the next batch; what was read stays and is true."""
    interrupt = Event()
    context = open_cache(model, n_ctx=128, max_rows=10, interrupt=interrupt)
    prefill(context, TEXT)
    interrupt.set()
    with pytest.raises(Cancelled):
        prefill(context, [*TEXT, *range(100)])
    assert context.tokens == TEXT
    interrupt.clear()
    row = rows_of(context, [99])[0]
    np.testing.assert_allclose(row, fresh_row(model, [*TEXT, 99]), **CLOSE)


def test_a_recurrent_state_is_read_again(tiny_files):
    """Mamba cannot take back a token: without a saved state it begins again, and says so."""
    mamba = Model(tiny_files.mamba, ModelOptions())
    context = open_cache(mamba, n_ctx=128, max_rows=10, interrupt=Event())
    assert context.rollback == "replay"
    prefill(context, TEXT)
    assert prefill(context, [*TEXT, 1]) == 10  # going on takes nothing back
    assert prefill(context, TEXT) == 10  # the end of a prompt is remembered
    assert prefill(context, TEXT[:5]) == 0
    row = rows_of(context, TEXT[5:6])[0]
    np.testing.assert_allclose(row, fresh_row(mamba, TEXT[:6]), **CLOSE)


def test_a_rejected_pass_goes_back_to_where_it_began(tiny_files):
    """The state before a pass of several rows is there until the next one is settled."""
    mamba = Model(tiny_files.mamba, ModelOptions())
    context = open_cache(mamba, n_ctx=128, max_rows=10, interrupt=Event())
    prefill(context, TEXT[:4])
    rows_of(context, TEXT[4:8])
    context.trim(6)
    assert context.length == 4
    context.decode(TEXT[4:9], 3)  # two tokens again, then three rows
    context.trim(8)
    assert context.length == 6
    row = context.decode(TEXT[6:9], 1)[0]
    np.testing.assert_allclose(row, fresh_row(mamba, TEXT[:9]), **CLOSE)


def test_cache_size_is_what_llama_cpp_takes(model, tiny_files):
    """The estimate in the start-up line: 2 layers, 32 wide, keys and values."""
    assert footprint(model).cache_bytes(128) == 2 * 2 * 32 * 2 * 128
    quantized = Model(tiny_files.target, ModelOptions(cache_type_k="q8_0", cache_type_v="f32"))
    assert footprint(quantized).cache_bytes(128) == int(2 * 32 * (34 / 32 + 4) * 128)
    mamba = Model(tiny_files.mamba, ModelOptions())
    assert footprint(mamba).cache_bytes(128, states=3) == 3 * 2 * 4 * (3 * 128 + 16 * 128)


@pytest.mark.parametrize("cache_type", ["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_cache_types(tiny_files, cache_type):
    """Each cache type works for keys and values (a quantized one needs heads of 32)."""
    model = Model(
        tiny_files.two_heads, ModelOptions(cache_type_k=cache_type, cache_type_v=cache_type)
    )
    context = open_cache(model, n_ctx=64, max_rows=10, interrupt=Event())
    assert np.isfinite(rows_of(context, TEXT)[8]).all()


def test_common_prefix():
    """The longest common prefix, of lists of any length."""
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2, 3], [1, 2]) == 2
    assert common_prefix([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix([1], [2]) == 0
