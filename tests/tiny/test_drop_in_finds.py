"""`DSparkLlama` finds what the command line finds, and says nothing unless it is verbose."""

from __future__ import annotations

import pickle

import pytest

from dspark_gguf import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import ModelError
from tests.tiny_dflash import write_dflash
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_heads import Made, write_mtp

CYCLE = Made(how="cycle")
NAME = "Toy-1b-Q8_0.gguf"
PROMPT = [10, 20, 30, 40]


@pytest.fixture
def made():
    opened = []

    def make(target, **options):
        named = {"n_ctx": 256, "seed": 1, "verbose": False, **options}
        opened.append(DSparkLlama(str(target), **named))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def said():
    def say(llama):
        return llama.create_completion(PROMPT, max_tokens=24, temperature=0.0)["choices"]

    return say


def test_its_own_head(tmp_path, made, said, capfd):
    """Used without a word; `none` and other ways to say so do without, and say the same."""
    target = write_mtp(tmp_path / NAME, CYCLE)
    found = made(target, speculation=Speculation(mode="on"))  # whatever passes cost here
    assert "MTP" in found.drafter.about or "heads" in found.drafter.about
    text = said(found)
    assert found.tally.accepted > 0
    for options in (
        {"draft": "none"}, {"speculation": Speculation(drafter="lookup")},
        {"speculation": Speculation(mode="off")},
    ):  # fmt: skip
        llama = made(target, **options)
        assert llama._draft is None
        assert said(llama) == text
    assert capfd.readouterr().err == ""


def test_a_file_beside_it(tmp_path, made, capfd):
    """With `verbose`, one line says which; the draft stays where the target is."""
    target = write_llama(tmp_path / NAME, Tiny(seed=0))
    write_dflash(tmp_path / "dspark-a.gguf")
    llama = made(target, verbose=True)
    err = capfd.readouterr().err
    assert "DSparkLlama: draft found beside the model: dspark-a.gguf" in err
    assert llama._draft.model.options.n_gpu_layers == "none"
    again = pickle.loads(pickle.dumps(llama))
    assert again._draft.model.path == llama._draft.model.path
    again.close()


def test_one_that_cannot_be_used_gives_way(tmp_path, made, monkeypatch, capfd):
    """A named one is an error."""

    def refuse(*args, **options):
        raise ModelError("llama.cpp is too old", "")

    target = write_llama(tmp_path / NAME, Tiny(seed=0))
    draft = write_dflash(tmp_path / "dspark-a.gguf")
    monkeypatch.setattr("dspark_gguf.dropin.drafts.open_drafts", refuse)
    assert made(target)._draft is None
    assert capfd.readouterr().err == ""
    with pytest.raises(ModelError, match="too old"):
        made(target, draft=draft)


def test_embeddings_need_none(tmp_path, made):
    """Nothing is looked for where nothing is generated."""
    assert made(write_mtp(tmp_path / NAME, CYCLE), embedding=True)._draft is None
