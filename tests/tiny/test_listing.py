"""The list of known pairs, and how fast each should be on this machine."""

from __future__ import annotations

import json

import pytest

from dspark_gguf.catalog import listing
from dspark_gguf.catalog.pairs import known_pairs
from dspark_gguf.catalog.resolve import resolve
from dspark_gguf.errors import UsageError
from dspark_gguf.learned import Learned, learned_path, seconds_per_byte
from tests.tiny.test_local import home, put

__all__ = ["home"]  # fixtures


def test_the_table_of_pairs(home, monkeypatch, dspark):
    """What fits this machine, and what is here."""
    monkeypatch.setattr(listing, "machine_gigabytes", lambda: 15.6)
    folder = home / "hub/models--Qwen--Qwen3-0.6B-GGUF/snapshots/0123"
    put(folder / "Qwen3-0.6B-Q8_0.gguf")
    done = dspark("models")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 89
    assert "for machines with 16 GB:" in lines  # 15.6 GiB are what 16 GB tell
    assert "for machines with 32 GB (this one has 16):" in lines
    titles = [line for line in lines if line.startswith("for ")]
    assert len(titles) == len(set(titles)) == 5  # whatever the order of the list
    rows = {line.strip("* ").split()[0]: line for line in lines if line}
    assert rows["qwen3-8b"].startswith("*")
    assert rows["qwen3-8b"].endswith("draft only")
    assert rows["demo"].endswith("yes")
    assert all(pair.name in rows for pair in known_pairs())
    assert [name for name, line in rows.items() if line.startswith("*  ")] == [
        "qwen3-4b", "qwen3-8b",
    ]  # fmt: skip
    assert "recommended for this machine:\n  dspark-gguf chat -m qwen3-8b\n" in done.stdout
    for word in {word for pair in known_pairs() for word in (pair.status,)}:
        assert f"{word}" in done.stdout.partition("checked: ")[2], word
    values = json.loads(dspark("models", "--json").stdout)
    [qwen] = [row for row in values if row["name"] == "qwen3-8b"]
    assert qwen["downloaded"] == {"target": None, "draft": str(folder / "Qwen3-0.6B-Q8_0.gguf")}
    assert qwen["gigabytes"] == {"target": 5.0, "draft": 0.64}
    assert qwen["fits"] is True


def test_one_pair(home, dspark):
    """All that the list knows; a wrong name is wrong use."""
    done = dspark("models", "qwen3-8b-dspark")
    for text in ("deepseek-ai/dspark_qwen3_8b_block7", "convert it", "apache-2.0 + unknown"):
        assert text in done.stdout
    assert "convert it" in dspark("models", "Qwen3-8B-DSpark").stdout  # as -m takes it
    for name in ("qwen3-8c", ""):
        wrong = dspark("models", name)
        assert wrong.exit_code == 2
        assert f"no pair is called {name!r}" in wrong.stderr
    assert "qwen3-8b" in dspark("models", "qwen3-8c").stderr


def test_the_speed_of_a_pair_follows_from_its_size():
    """A tenth of a nanosecond a byte: 10 GB a second. Of experts, only the active ones are read."""
    pairs = {pair.name: pair for pair in known_pairs()}

    def speed(name, seconds=1e-10):
        return listing.facts(pairs[name], 64, seconds)["tokens_per_second"]

    assert speed("qwen3-8b") == pytest.approx(2.0)
    assert speed("qwen3.6-35b-a3b") == pytest.approx(10 / 21 * 35 / 3, abs=0.01)
    assert speed("qwen3-8b", None) is None


def test_how_fast_weights_are_read(home, tiny_files):
    """As in passes of the largest model that was loaded here; else as memory is read.

    Not as another machine read a larger one: they may share this folder.
    """
    assert 1e-13 < seconds_per_byte({}) < 1e-8
    for name, size in (("this one", 10**9), ("another one", 10**10)):
        known = Learned(learned_path({"a": name}), {"machine": {"cores": name}})
        known.costs.add_pass(1, 0.5)
        known.target_bytes = size
        known.save()
    assert seconds_per_byte({"cores": "this one"}) == pytest.approx(0.5e-9)


def test_memory_of_this_machine():
    """Somewhere between a very small and a very large one, in GiB."""
    assert 0.5 < listing.machine_gigabytes() < 100_000


def test_an_empty_name_is_no_folder():
    """As a shell gives it where a variable is not set."""
    for names in (("", None), (" ", None), ("demo", "")):
        with pytest.raises(UsageError, match="the name of a model is empty"):
            resolve(*names)


def test_a_link_is_no_file_and_no_folder():
    """It is refused as what it is; those of the hub's pages are understood."""
    for names in (("https://example.org/m.gguf", None), ("demo", "file:///m.gguf")):
        with pytest.raises(UsageError, match="cannot be followed"):
            resolve(*names)
