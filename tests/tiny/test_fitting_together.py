"""Memory of a draft that several conversations share."""

from __future__ import annotations

from functools import partial

import pytest

from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine.fitting import draft_need
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.pair import Pair
from tests.tiny.test_fitting import MIB, log
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_gguf import write_llama
from tests.tiny_heads import HEADS, Made, write_mtp

__all__ = ["log"]  # a fixture


@pytest.mark.parametrize("conversations", [1, 3, 40])
@pytest.mark.parametrize("kind", ["model", "mtp", "sidecar", "eagle3", "assistant", "block"])
def test_what_conversations_need_of_a_draft_is_known_before(tmp_path, log, kind, conversations):
    """A joint pass has rows of all of them: its buffers and its cache are counted, not one's."""
    paths = tmp_path / "target.gguf", tmp_path / "draft.gguf"
    writers = {
        "model": (write_llama, write_llama),
        "mtp": (partial(write_mtp, made=Made()), None),
        "sidecar": (partial(write_mtp, made=Made()), partial(write_mtp, made=Made(), keep=HEADS)),
        "eagle3": (write_cycle_llama, write_eagle3),
        "assistant": (write_gemma4, write_assistant),
        "block": (write_llama, write_dflash),
    }
    write_target, write_draft = writers[kind]
    target = write_target(paths[0])
    draft = write_draft(paths[1]) if write_draft else target
    header, n_ctx = read_header(target), 256
    options = ModelOptions(n_ctx=n_ctx), DraftOptions()
    with Pair(target, draft, *options, conversations=conversations) as pair:
        log("nothing")  # what was said of the target
        cache, count = pair.draft_cache(), len(pair.target_caches)
        [reserved] = log(r"CPU compute buffer size = +([\d.]+) MiB")
        need = draft_need(read_header(draft), header, options[1], n_ctx, n_ctx, count)
        assert need.cache == cache.context.cache_bytes
        assert need.n_ctx == cache.context.n_ctx
    assert reserved * MIB <= need.buffers + MIB / 8
    if kind != "assistant":  # it attends to no more than the target's cells
        assert need.buffers <= 4 * reserved * MIB + MIB
    one = draft_need(read_header(draft), header, options[1], n_ctx)
    assert (need.buffers > one.buffers) is (conversations > 1)
