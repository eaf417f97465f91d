"""Batches as Ray Data hands them over, without Ray."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dspark_gguf.errors import ResourceError, UsageError
from dspark_gguf.ray import Answerer

LONG = "word " * 600


@pytest.fixture
def answerer(tiny_files):
    made = Answerer(
        model=str(tiny_files.target), target_options={"n_ctx": 128}, sampling={"seed": 1},
        limits={"max_tokens": 8},
    )  # fmt: skip
    yield made
    if made._pair:
        made._pair.close()


def column(*values):
    """As Arrow's rows come out of it."""
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def test_a_batch_keeps_its_rows(answerer):
    """Answers and errors are texts, each in its row; all other columns stay as they are."""
    batch = {"id": np.array([7, 8, 9]), "prompt": column("aaa", LONG, "bbb")}
    done = answerer(batch)
    assert list(done) == ["id", "prompt", "answer", "error"]
    assert done["id"] is batch["id"]
    assert [bool(text) for text in done["answer"]] == [True, False, True]
    assert [bool(text) for text in done["error"]] == [False, True, False]
    assert "a context of 128" in done["error"][1]
    alone = answerer({"prompt": column("bbb")})
    assert alone["answer"][0] == done["answer"][2]


def test_conversations(answerer):
    """Arrow gives all messages the keys that one of them has."""
    user = {"role": "user", "content": "aaa", "name": None}
    batch = {
        "prompt": column(None, "aaa", float("nan")),
        "messages": column(np.array([user]), None, np.array([{**user, "role": "bot"}])),
    }
    done = answerer(batch)
    assert done["answer"][0]
    assert done["answer"][0] == done["answer"][1]
    assert "the role in messages[0]" in done["error"][2]


def test_what_pandas_lacks(answerer):
    """Its NA is neither equal nor unequal to anything."""
    pandas = pytest.importorskip("pandas")
    done = answerer(pandas.DataFrame({"prompt": pandas.array(["aaa", pandas.NA], dtype="string")}))
    assert done["answer"][0]
    assert "exactly one of" in done["error"][1]


def test_a_table_of_arrow(answerer):
    """It has no columns by name."""
    arrow = pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match=r"a batch is a Table.* Leave batch_format out"):
        answerer(arrow.table({"prompt": ["aaa"]}))


def test_what_is_no_text(answerer):
    """Any other type is that row's error."""
    done = answerer({"prompt": np.array([3, 4])})
    assert all("prompt must be text, not" in text for text in done["error"])


def test_a_batch_without_prompts(answerer):
    with pytest.raises(UsageError, match=r"neither of the columns prompt and messages\. It has x"):
        answerer({"x": column("aaa")})


def test_wrong_settings_are_refused_where_they_are_written():
    """Not later on a machine far away."""
    with pytest.raises(UsageError, match="modle"):
        Answerer(modle="target.gguf")


def test_models_stay_in_their_process(answerer):
    """It can be sent at any time; the copy loads its own."""
    answerer({"prompt": column("aaa")})
    copy = pickle.loads(pickle.dumps(answerer))
    assert copy._pair is None
    assert copy._settings == answerer._settings


def test_an_error_can_be_sent():
    """With its text, its hint and its kind."""
    sent = pickle.loads(pickle.dumps(ResourceError("the context is full", "Use another.")))
    assert isinstance(sent, ResourceError)
    assert (sent.problem, sent.hint) == ("the context is full", "Use another.")
    assert str(sent) == "the context is full. Use another."
