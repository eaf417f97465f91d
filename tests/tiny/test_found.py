"""Drafts that are there are found, and the one that should be fastest here is used."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest

from dspark_gguf import load_pair
from dspark_gguf.catalog import found as catalog
from dspark_gguf.catalog.found import drafts_here, find_draft
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import ModelError, ResourceError
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_heads import HEADS, TRUNK, Made, write_mtp

CYCLE = Made(how="cycle")
NAME = "Toy-1b-Q8_0.gguf"


def write_trunk(path):
    """As quantizers leave it: it counts a head that it lacks."""
    return write_mtp(path, CYCLE, keep=TRUNK)


write_head = partial(write_mtp, made=CYCLE, keep=HEADS)
#: A target, a draft beside it, and what the draft is called.
BESIDE = {
    "head": (write_trunk, write_head, "MTP"),
    "eagle3": (write_cycle_llama, write_eagle3, "EAGLE-3"),
    "dspark": (write_llama, write_dflash, "DSpark"),
    "assistant": (write_gemma4, write_assistant, "MTP"),
}


def here(path):
    return drafts_here(read_header(path))


@pytest.mark.parametrize("place", ["mtp-x.gguf", "whatever.gguf", "MTP/whatever.gguf"])
@pytest.mark.parametrize("kind", BESIDE)
def test_beside_the_target(shelf, dspark, kind, place):
    """By its name or its header, in the folder or one that is called like a kind; and it runs."""
    write_target, write_draft, name = BESIDE[kind]
    target, draft = write_target(shelf / NAME), shelf / place
    draft.parent.mkdir(exist_ok=True)
    write_draft(draft)
    [found] = here(target)
    assert (found.path, found.where) == (draft, "beside the model")
    words = ["run", "--raw", "-m", target, "-n", "12", "--temp", "0", "--no-learn", "ABCDE"]
    drafted = dspark(*words, "-v", "--spec", "on", "--drafter", "model", "--json")
    assert drafted.exit_code == 0, drafted.stderr
    assert f"draft found beside the model: {draft.name} ({name})" in drafted.stderr
    answer = json.loads(drafted.stdout)
    plain = json.loads(dspark(*words, "--draft", "none", "--json").stdout)
    assert answer["draft"] == draft.stem
    assert plain["draft"] is None
    assert answer["text"] == plain["text"] != ""


def test_a_folder_called_snapshots_is_no_repository(shelf):
    """What lies deeper in it is another model's; in the hub's cache it is the same repository's."""
    for folder, count in (("snapshots/x", 0), ("models--org--m/snapshots/0123", 1)):
        target = write_cycle_llama(_made(shelf / folder / NAME))
        write_eagle3(_made(target.parent / "deeper" / "eagle3-a.gguf"))
        assert len(here(target)) == count


def _made(path):
    path.parent.mkdir(parents=True)
    return path


def test_inside_the_target(shelf, dspark):
    """Its own head: every guess of this one is right."""
    target = write_mtp(shelf / NAME, CYCLE)
    [found] = here(target)
    assert (found.path, found.where) == (target, "inside the model")
    with load_pair(target) as pair:
        assert "its own MTP head" in pair.found
        assert pair.draft_cache() is not None
    with load_pair(target, "none") as pair:
        assert (pair.found, pair.draft_cache()) == ("", None)
    words = ("run", "-v", "--raw", "-m", target, "-n", "2", "--no-learn", "ABC")
    assert "its own MTP head" in dspark(*words).stderr
    assert "MTP head" not in dspark(*words, "--spec", "off").stderr
    shown = dspark("inspect", target)
    assert "prediction heads  1: used as its draft" in shown.stdout


def test_a_head_that_was_left_out(shelf, dspark):
    """The target is a plain one; `inspect` says what is missing."""
    target = write_trunk(shelf / NAME)
    assert here(target) == []
    done = dspark("run", "--raw", "-m", target, "-n", "4", "--no-learn", "ABC")
    assert done.exit_code == 0, done.stderr
    assert "left them out" in dspark("inspect", target).stdout


def test_what_does_not_fit(shelf, dspark):
    """Made for another target: it says so, and answers without; damaged ones are passed over."""
    target = write_llama(shelf / NAME, Tiny(width=128))
    write_dflash(shelf / "dspark-other.gguf")
    (shelf / "mtp-half.gguf").write_bytes(b"GGUF")
    write_llama(shelf / "small.gguf")  # no sidecar: a smaller model is named by the user
    assert here(target) == []
    path, line = find_draft(target)
    assert path is None
    assert line.startswith(
        "no draft is used: dspark-other.gguf beside the model: made for a target"
    )
    done = dspark("run", "--raw", "-m", target, "-n", "4", "--no-learn", "ABC")
    assert done.exit_code == 0, done.stderr
    assert find_draft(shelf / "dspark-other.gguf") == (None, "")  # who opens it says what it is


def test_many_files_that_do_not_call_themselves_drafts(shelf):
    """Reading the headers of a whole collection would take seconds at each start."""
    target = write_cycle_llama(shelf / NAME)
    write_eagle3(shelf / "draft.gguf")
    assert len(here(target)) == 1
    for k in range(9):
        write_llama(shelf / f"other-{k}.gguf")
    assert here(target) == []
    shutil.move(shelf / "draft.gguf", shelf / "eagle3-draft.gguf")
    assert len(here(target)) == 1


def test_in_other_programs_folders(shelf, model_folder):
    """Of the same family and size, by its name; its header decides."""
    target = write_cycle_llama(shelf / NAME)
    for name in ("eagle3-Toy-1b-F16.gguf", "eagle3-Toy-7b.gguf", "Toy-1b-eagle3.gguf"):
        write_eagle3(model_folder / name)
    write_dflash(model_folder / "dspark-Toy-1b.gguf")  # of a llama with two layers: it fits too
    assert {(each.path.name, each.where) for each in here(target)} == {
        ("eagle3-Toy-1b-F16.gguf", "in llama.cpp"), ("dspark-Toy-1b.gguf", "in llama.cpp"),
    }  # fmt: skip


def test_of_the_list(shelf, tiny_files):
    """A pair's draft is used for its target under any name, once it is here."""
    target = write_llama(shelf / "Qwen3-8B-Q4_0.gguf")
    assert here(target) == []
    snapshot = shelf.parent / "hub/models--Qwen--Qwen3-0.6B-GGUF/snapshots/0123"
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_files.draft, snapshot / "Qwen3-0.6B-Q8_0.gguf")
    [found] = here(target)
    assert (found.path.name, found.where) == ("Qwen3-0.6B-Q8_0.gguf", "in the list, as qwen3-8b")
    other = write_llama(shelf / "Llama-8B-Q4_0.gguf")
    assert here(other) == []


def test_the_headers_of_models_are_not_read(shelf, demo_files, monkeypatch):
    """Each would take up to a tenth of a second; the first bytes tell enough."""
    target = write_cycle_llama(shelf / NAME)
    shutil.copy(demo_files[1], shelf / "large.gguf")
    seen = []
    monkeypatch.setattr(catalog, "read_header", lambda path: seen.append(path) or read_header(path))
    assert here(target) == []
    assert seen == []
    write_eagle3(shelf / "some.gguf")
    assert len(here(target)) == 1


def test_a_found_draft_that_cannot_be_loaded(shelf, monkeypatch):
    """Nobody named it: the target answers without, and a note says why. A named one is refused."""
    target, draft = write_cycle_llama(shelf / NAME), write_eagle3(shelf / "eagle3-a.gguf")

    def refuse(*_):
        raise ModelError("llama.cpp is too old", "")

    monkeypatch.setattr("dspark_gguf.engine.pair.open_drafts", refuse)
    with load_pair(target) as pair:
        assert pair.draft_cache() is None
        assert "llama.cpp is too old: the draft that was found is not used" in pair.notes
    with load_pair(target, draft) as pair, pytest.raises(ModelError, match="too old"):
        pair.draft_cache()


def test_heads_without_memory_for_them(shelf, monkeypatch):
    """A target that loads only without its own heads: the draft gives way."""
    target, load = write_mtp(shelf / NAME, CYCLE), Model._load

    def only_without(model, *how):
        if model.has_heads:
            raise ResourceError("no memory on the GPU", "")
        return load(model, *how)

    monkeypatch.setattr(Model, "_load", only_without)
    with load_pair(target) as pair:
        assert pair.draft_cache() is None
        assert "no memory on the GPU: its prediction heads are not used" in pair.notes
    with pytest.raises(ResourceError):
        load_pair(target, "mtp")


def test_another_vocabulary_of_the_same_size(shelf):
    """Its header tells: it is not used, and no error comes of it."""
    target = write_llama(shelf / NAME, Tiny(changed=((100, "other"),)))
    write_dflash(shelf / "dspark-a.gguf")
    assert here(target) == []
    assert "token 100 is" in find_draft(target)[1]
