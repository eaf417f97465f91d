"""What llama.cpp's memories do when tokens are taken back: the facts below `rollback.py`."""

from __future__ import annotations

import ctypes
from itertools import pairwise

import llama_cpp
import numpy as np
import pytest

from tests.tiny_gguf import Tiny
from tests.tiny_kinds import WINDOW, WRITERS

TEXT = [int(k) for k in np.random.default_rng(0).integers(0, 250, 700)]
PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
SNAPSHOTS = ("lfm2", "qwen35")
STATEFUL = ("mamba", "rwkv7", "lfm2", "qwen35", "qwen3next")
N_TOKENS = 263
CLOSE = {"rtol": 0, "atol": 2e-3}


class Raw:
    """One sequence of one context, by llama.cpp's own calls."""

    def __init__(self, path, snapshots=0, whole=True, ubatch=512):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, ubatch
        params.n_rs_seq, params.swa_full = snapshots, whole
        params.flash_attn_type, params.type_k, params.type_v = 0, 0, 0
        params.n_threads = params.n_threads_batch = 1
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(self, start, end):
        """Rows of these tokens of the text."""
        batch, count = self.batch, end - start
        for k in range(count):
            batch.token[k], batch.pos[k], batch.logits[k] = TEXT[start + k], start + k, 1
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, 0
        batch.n_tokens = count
        assert llama_cpp.llama_decode(self.context, batch) == 0
        rows = (llama_cpp.llama_get_logits_ith(self.context, k) for k in range(count))
        return np.stack([np.ctypeslib.as_array(row, (N_TOKENS,)).copy() for row in rows])

    def remove(self, start):
        return bool(llama_cpp.llama_memory_seq_rm(self.memory, 0, start, -1))

    def save(self):
        size = llama_cpp.llama_state_seq_get_size_ext(self.context, 0, PARTIAL)
        data = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data_ext(self.context, data, size, 0, PARTIAL) == size
        return data

    def restore(self, data):
        size = len(data)
        return llama_cpp.llama_state_seq_set_data_ext(self.context, data, size, 0, PARTIAL) == size

    def first_and_last(self):
        return (
            llama_cpp.llama_memory_seq_pos_min(self.memory, 0),
            llama_cpp.llama_memory_seq_pos_max(self.memory, 0),
        )

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    tiny = Tiny(context=1024)
    return {name: write(folder / f"{name}.gguf", tiny) for name, write in WRITERS.items()}


@pytest.fixture
def raw(paths):
    """Makes contexts, and frees them."""
    made = []

    def make(name, **options):
        made.append(Raw(paths[name], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_model_says_of_its_memory(raw, name):
    """Recurrent or hybrid, and its window."""
    model = raw(name).model
    recurrent = llama_cpp.llama_model_is_recurrent(model)
    hybrid = llama_cpp.llama_model_is_hybrid(model)
    assert recurrent is (name in ("mamba", "rwkv7"))
    assert (recurrent or hybrid) is (name in STATEFUL)
    assert llama_cpp.llama_model_n_swa(model) == (WINDOW if name == "gemma3" else 0)


@pytest.mark.parametrize("name", WRITERS)
def test_snapshots_are_kept_by_some_architectures(raw, name):
    """Others are given none, in silence: `llama_n_rs_seq` says what there is."""
    for wanted in (0, 4, 16):
        got = llama_cpp.llama_n_rs_seq(raw(name, snapshots=wanted).context)
        assert got == (wanted if name in SNAPSHOTS else 0)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("back", [1, 2, 4, 5, 9])
def test_removal_of_the_last_tokens(raw, name, back):
    """Attention: any; with snapshots: as many as there are, and the rows after it are true; else
    it is refused, and nothing has changed.
    """
    cache, other = raw(name, snapshots=4), raw(name)
    cache.decode(0, 20)
    cache.decode(20, 30)
    possible = name not in STATEFUL or (name in SNAPSHOTS and back <= 4)
    assert cache.remove(30 - back) is possible
    start = 30 - back if possible else 30
    assert cache.first_and_last()[1] == start - 1
    np.testing.assert_allclose(cache.decode(start, 40), other.decode(0, 40)[start:], **CLOSE)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshots_are_used_once(raw, name):
    """After a rollback another one is refused until something was decoded."""
    cache = raw(name, snapshots=4)
    cache.decode(0, 20)
    assert cache.remove(18)
    assert not cache.remove(17)
    cache.decode(18, 21)
    assert cache.remove(20)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshots_reach_no_further_than_the_last_pass(raw, name):
    """llama.cpp says yes to the whole of it and more, and the state is then a wrong one."""
    rows = raw(name).decode(0, 40)
    for passes, back in (((20, 30), 10), ((20, 21, 22, 23), 2)):
        cache = raw(name, snapshots=16)
        cache.decode(0, 20)
        for start, end in pairwise(passes):
            cache.decode(start, end)
        assert cache.remove(passes[-1] - back)
        start = passes[-1] - back
        found = cache.decode(start, start + 5)
        assert not np.allclose(found, rows[start : start + 5], **CLOSE)


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshots_survive_a_prompt_of_several_batches(raw, name):
    """The tokens that snapshots reach back over are kept in one computed batch."""
    rows = raw(name).decode(0, 140)
    cache = raw(name, snapshots=16, ubatch=32)
    cache.decode(0, 131)  # 4 x 32 + 3
    assert cache.remove(119)
    np.testing.assert_allclose(cache.decode(119, 125), rows[119:125], **CLOSE)


@pytest.mark.parametrize("name", [*STATEFUL, "gemma3"])
@pytest.mark.parametrize("snapshots", [0, 4])
def test_a_saved_state_is_restored(raw, name, snapshots):
    """The part that cannot be removed; what attention holds behind it is removed afterwards."""
    cache = raw(name, snapshots=snapshots, whole=False)
    cache.decode(0, 100)
    state = cache.save()
    cache.decode(100, 300)
    for _ in range(2):  # as often as one likes
        assert cache.restore(state)
        assert cache.remove(100)
        assert cache.first_and_last()[1] == 99
        rows = raw(name).decode(0, 110)
        np.testing.assert_allclose(cache.decode(100, 110), rows[100:], **CLOSE)


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_a_state_saved_after_a_rollback_is_the_one_rolled_back_to(raw, name):
    """The snapshot that is in use, not the state that it replaced."""
    cache = raw(name, snapshots=4)
    cache.decode(0, 20)
    cache.decode(20, 26)
    assert cache.remove(23)
    state = cache.save()
    cache.decode(23, 30)
    assert cache.restore(state)
    assert cache.remove(23)
    rows = raw(name).decode(0, 30)
    np.testing.assert_allclose(cache.decode(23, 30), rows[23:], **CLOSE)


@pytest.mark.parametrize("name", [*STATEFUL, "gemma3"])
def test_a_truncated_state_is_refused(raw, name):
    """0, and nothing worse."""
    cache = raw(name, whole=False)
    cache.decode(0, 30)
    state = cache.save()
    half = (ctypes.c_uint8 * (len(state) // 2)).from_buffer_copy(state)
    assert not cache.restore(half)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_as_large_after_any_number_of_tokens(raw, name):
    """Recurrent states do not grow; a snapshot is not part of them."""
    sizes = set()
    for snapshots in (0, 8):
        cache = raw(name, snapshots=snapshots)
        for start, end in ((0, 10), (10, 300)):
            cache.decode(start, end)
            sizes.add(len(cache.save()))
    assert len(sizes) == 1


def test_a_window_forgets_and_says_from_where(raw):
    """Removal is never refused; the rows are true as far as the window before them is there."""
    rows = raw("gemma3").decode(0, 500)
    for back, true in ((10, True), (64, True), (200, True), (260, False), (350, False)):
        cache = raw("gemma3", whole=False, ubatch=64)
        for start in range(0, 480, 40):
            cache.decode(start, start + 40)
        first, _ = cache.first_and_last()
        assert first > 0
        assert cache.remove(480 - back)
        found = cache.decode(480 - back, 490 - back)
        assert (480 - back >= first + WINDOW - 1) is true
        assert np.allclose(found, rows[480 - back : 490 - back], **CLOSE) is true
