"""Texts of the user's own to copy from."""

import numpy as np
import pytest

from dspark_gguf.draft import LookupDrafter, Store
from dspark_gguf.draft.index import FURTHEST, Match
from dspark_gguf.draft.store import LEAST
from dspark_gguf.errors import PairError, UsageError
from tests.fakes import Letters


def made(*texts, most=10_000):
    return Store.of_texts(texts, most, "letters")


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_comparing_everything_finds(seed):
    """The longest of the latest places, never across the end of a text."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 3, 30).tolist() for _ in range(3)]
    store = made(*texts)
    flat = list(store.tokens)
    known = rng.integers(0, 3, 12).tolist()

    def common(place):
        same = 0
        while (
            same < min(place, len(known), FURTHEST) and flat[place - 1 - same] == known[-1 - same]
        ):
            same += 1
        return same

    pairs = [place for place in range(2, len(flat)) if common(place) >= 2][-8:]
    wanted = [Match(p, common(p)) for p in pairs if common(p) >= LEAST and flat[p] >= 0]
    assert store.matches(known) == sorted(wanted, key=lambda m: (m.length, m.place), reverse=True)


def test_the_better_match_wins_and_a_draw_goes_to_the_conversation():
    """A longer match in the store beats the conversation; an equal one does not."""
    drafter = LookupDrafter(Letters(9), made([1, 2, 3, 4, 5], [6, 7]))
    assert drafter.guess([1, 2, 3], 9)[0] == (4, 5)  # and not beyond the text's end
    drafter.restart([], None)
    assert drafter.guess([0, 2, 3, 7, 7, 1, 2, 3], 9)[0] == (4, 5)
    drafter.restart([], None)
    assert drafter.guess([1, 2, 3, 7, 1, 2, 3], 1)[0] == (7,)
    assert drafter.guess([1, 2, 3, 7, 1, 2, 3, 6], 9)[0] == ()


def test_saved_and_loaded(tmp_path):
    """The same matches; another vocabulary is refused, and so is what is no store."""
    path = tmp_path / "mine.lookup"
    made([1, 2, 3, 4], [1, 2, 3, 5]).save(path)
    again = Store.load(path, "letters", 9)
    assert again.matches([0, 1, 2, 3]) == made([1, 2, 3, 4], [1, 2, 3, 5]).matches([0, 1, 2, 3])
    with pytest.raises(PairError, match="another"):
        Store.load(path, "words", 9)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 61):
        path.write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="store of texts"):
            Store.load(path, "letters", 9)
    with pytest.raises(UsageError, match="no store of texts at"):
        Store.load(tmp_path / "none", "letters", 9)
    arrays = {"pairs": np.zeros(1, np.int64), "places": np.full(1, 9, np.int32)}
    np.savez(path.with_suffix(".npz"), tokens=np.zeros(3, np.int32), vocabulary="letters", **arrays)
    with pytest.raises(UsageError, match="damaged"):
        Store.load(path.with_suffix(".npz"), "letters", 9)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("tokens", 1, 9), ("tokens", 1, 2**31 - 1), ("tokens", 1, -2), ("tokens", 1, 3),
        ("tokens", -1, 3), ("places", 0, 1), ("places", 0, 99), ("pairs", 0, 0),
        ("pairs", slice(None, None, -1), None), ("places", slice(None, None, -1), None),
        (("pairs", "places"), slice(None, None, -1), None),
    ],
)  # fmt: skip
def test_a_damaged_store_is_refused(tmp_path, name, index, value):
    """Ids that the vocabulary lacks, pairs that stand elsewhere or in another order."""
    path = tmp_path / "mine.lookup.npz"
    store = made([1, 2, 3, 4], [1, 2, 3, 5])
    arrays = {
        "tokens": np.array(store.tokens, np.int32), "pairs": store._pairs.copy(),
        "places": store._places.copy(), "vocabulary": np.array("letters"),
    }  # fmt: skip
    np.savez(path, **arrays)
    Store.load(path, "letters", 6)
    with pytest.raises(UsageError, match="damaged"):
        Store.load(path, "letters", 5)
    for each in [name] if isinstance(name, str) else name:
        if value is None:
            arrays[each] = arrays[each][index]
        else:
            arrays[each][index] = value
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match="damaged"):
        Store.load(path, "letters", 9)


def test_memory_is_bounded():
    """The first tokens are kept, and an empty store finds nothing."""
    store = made([1] * 100, [2] * 100, most=120)
    assert len(store) == 121
    assert store.tokens[-1] == -1
    assert made().matches([1, 2, 3]) == []
    assert made([], [1]).matches([1, 1, 1]) == []
