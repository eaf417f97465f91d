"""`DSparkLlama` with every kind of draft on every kind of memory, beside `Llama`."""

from __future__ import annotations

from itertools import islice

import llama_cpp
import pytest

from dspark_gguf import Speculation
from dspark_gguf.config import DraftOptions
from dspark_gguf.draft import BlockDrafter, LookupDrafter, ModelDrafter
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine.rollback import Rollback
from dspark_gguf.errors import PairError
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_kinds import WRITERS

EXACT = {
    "n_ctx": 512, "n_batch": 64, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False,
    "n_threads": 1, "n_threads_batch": 1, "swa_full": True,
}  # fmt: skip
DRAFT = DraftOptions(n_ctx=512, flash_attn="off", cache_type_k="f32", cache_type_v="f32", threads=1)
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=5, learn=False)
PROMPT = [10, 20, 30, 40, 50, 60, 70, 80]
#: A penalty keeps random models from saying one thing for ever, which any state would do for.
WAYS = [{"temp": 0.0, "repeat_penalty": 1.8}, {"temp": 0.8, "repeat_penalty": 1.3, "top_k": 5}]
PAIRS = [
    ("mamba", "mamba"), ("rwkv7", "llama"), ("lfm2", "lfm2"), ("qwen35", "lookup"),
    ("qwen3next", "mamba"), ("gemma3", "rwkv7"), ("llama", "qwen35"), ("llama", "block"),
    ("lfm2", "block"), ("qwen35", "block"), ("qwen3next", "block"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For the files of all models."""
    return tmp_path_factory.mktemp("drop_in_kinds")


def file_of(folder, name, **tiny):
    """A model of this kind; `noise` makes a draft of it."""
    path = folder / f"{name}{'-draft' if tiny else ''}.gguf"
    if not path.exists():
        model = Tiny(context=1024, **tiny)
        if name == "block":
            write_dflash(path, Block(), model)
        else:
            WRITERS[name](path, model)
    return str(path)


def said(llama, prompt, count=40, **way):
    llama.set_seed(7)
    return list(islice(llama.generate(list(prompt), **way), count))


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_says_what_llama_says(folder, target, draft):
    """Over an answer, one that goes on from it, an edit, an abandoned answer; drafts are used."""
    path = file_of(folder, target)
    how = {} if draft == "lookup" else {
        "draft_model": file_of(folder, draft, noise=0.05), "draft_options": DRAFT,
    }  # fmt: skip
    plain = llama_cpp.Llama(path, **EXACT)
    ours = DSparkLlama(path, speculation=ALWAYS, **how, **EXACT)
    kind = {"lookup": LookupDrafter, "block": BlockDrafter}.get(draft, ModelDrafter)
    assert isinstance(ours.drafter, kind)
    drafted, observe = [], ours.drafter.observe
    ours.drafter.observe = lambda one: (drafted.append(one.drafted), observe(one))
    for way in WAYS:
        first = said(plain, PROMPT, **way)
        assert said(ours, PROMPT, **way) == first
        assert ours.input_ids[: ours.n_tokens].tolist() == [*PROMPT, *first[:-1]]
        on, edited = [*PROMPT, *first, 3, 4], [*PROMPT[:5], *first[10:20], 9]
        for prompt in (on, edited):
            assert said(ours, prompt, 3, **way) == said(plain, prompt, 3, **way)
            assert said(ours, prompt, **way) == said(plain, prompt, **way)
    assert sum(drafted) > (5 if draft == "lookup" else 50)
    plain.close()
    ours.close()


def test_what_others_do_to_the_memory_is_noticed(folder):
    """`reset`, `eval` and states of another object between two answers, beside a block draft."""
    path = file_of(folder, "lfm2")
    options = {"draft_model": file_of(folder, "block", noise=0.05), "draft_options": DRAFT}
    plain, other = llama_cpp.Llama(path, **EXACT), llama_cpp.Llama(path, **EXACT)
    ours = DSparkLlama(path, speculation=ALWAYS, **options, **EXACT)
    way, history = WAYS[0], [9, 8, 7, 6, 5]
    wanted = said(plain, [*history, 1, 2], **way)
    said(ours, PROMPT, **way)
    ours.reset()
    ours.eval(history)
    assert said(ours, [*history, 1, 2], **way) == wanted
    other.eval(history)
    ours.load_state(other.save_state())
    assert said(ours, [*history, 1, 2], **way) == wanted
    for each in (plain, other, ours):
        each.close()


def test_what_others_read_costs_no_states(folder, monkeypatch):
    """`eval` by the caller and speculation off: no state of a recurrent memory is copied."""
    ours = DSparkLlama(file_of(folder, "mamba"), speculation=ALWAYS, **EXACT)
    off = DSparkLlama(file_of(folder, "mamba"), speculation=Speculation(mode="off"), **EXACT)
    copied = []
    state = Rollback._checkpoint
    monkeypatch.setattr(
        Rollback,
        "_checkpoint",
        lambda self, length: (copied.append(length), state(self, length))[1],
    )
    assert len(said(off, PROMPT, temp=0.0)) == 40
    for token in PROMPT:
        ours.eval([token])
    assert not copied
    said(ours, PROMPT, 5, temp=0.0)
    copied.clear()
    for token in PROMPT:
        ours.eval([token])
    assert len(copied) <= 1
    ours.close()
    off.close()


def test_a_block_draft_of_another_target_is_refused(tmp_path):
    """By name, as in the commands; a path that is not there as well."""
    target = str(write_llama(tmp_path / "wide.gguf", Tiny(width=256)))
    draft = str(write_dflash(tmp_path / "block.gguf"))
    with pytest.raises(PairError, match=r"block\.gguf"):
        DSparkLlama(target, draft_model=draft, **EXACT)
