"""`Answerer` on a cluster of this machine, with the real Ray."""

from __future__ import annotations

import os

import pytest

from dspark_gguf.ray import Answerer

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

LONG = "word " * 600


@pytest.fixture(scope="module")
def cluster():
    """Two processes that compute, and nothing outside this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def test_two_actors(cluster, tiny_files, tmp_path):
    """Each row's answer or error is its own, whichever actor gave it, and as without Ray."""

    class Signed(Answerer):
        """Also says who answered."""

        def __call__(self, batch):
            done = super().__call__(batch)
            return {**done, "process": [os.getpid()] * len(done["answer"])}

    settings = {
        "model": str(tiny_files.target), "draft": str(tiny_files.draft),
        "target_options": {"n_ctx": 128, "threads": 1}, "draft_options": {"threads": 1},
        "sampling": {"seed": 1}, "limits": {"max_tokens": 8},
    }  # fmt: skip
    rows = [{"id": k, "prompt": LONG if k % 5 == 3 else "a" * (k + 1)} for k in range(24)]
    answered = ray.data.from_items(rows, override_num_blocks=6).map_batches(
        Signed,
        fn_constructor_kwargs=settings,
        batch_size=4,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    answered.write_parquet(str(tmp_path))
    found = sorted(ray.data.read_parquet(str(tmp_path)).take_all(), key=lambda row: row["id"])
    assert [(row["id"], row["prompt"]) for row in found] == [
        (row["id"], row["prompt"]) for row in rows
    ]
    for row in found:
        assert bool(row["error"]) == (row["prompt"] == LONG)
        assert bool(row["answer"]) != bool(row["error"])
    assert len({row["process"] for row in found}) == 2
    here = Answerer(**settings)({"prompt": [row["prompt"] for row in rows]})
    assert [row["answer"] for row in found] == list(here["answer"])


def test_models_that_cannot_be_loaded(cluster, tmp_path):
    """It is said in our words, wherever it happened."""
    missing = {"model": str(tmp_path / "none.gguf")}
    answered = ray.data.from_items([{"prompt": "a"}]).map_batches(
        Answerer, fn_constructor_kwargs=missing, compute=ray.data.ActorPoolStrategy(size=1)
    )
    with pytest.raises(Exception, match=r"none\.gguf"):
        answered.take_all()
