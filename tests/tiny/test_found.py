"""Drafts that are there are found, and the one that should be fastest here is used."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from dspark_gguf import load_pair
from dspark_gguf.catalog import found as catalog
from dspark_gguf.catalog.found import Found, choose, drafts_here, find_draft
from dspark_gguf.engine import library
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.kinds import share_of_a_pass
from dspark_gguf.engine.model import Model, file_stamp
from dspark_gguf.errors import ModelError, ResourceError
from dspark_gguf.learned import Learned, learned_dir, learned_of
from tests.fake_hub import serving
from tests.tiny_dflash import write_dflash
from tests.tiny_eagle3 import Eagle, write_assistant, write_cycle_llama, write_eagle3, write_gemma4
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


@pytest.fixture
def shelf(model_folder):
    """A folder for a target, which is no program's store; the stores are empty."""
    folder = model_folder.parent / "shelf"
    folder.mkdir()
    return folder


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


def kept(target, draft, step, agreement=None, passes=(1.0, 1.05, 1.1, 1.2)):
    """What was learned of a pair: seconds of passes and of a draft step, and how many stood."""
    about = {"machine": library.machine(), "target": file_stamp(target)}
    about["draft"] = draft and file_stamp(draft)
    known = Learned(learned_dir() / f"{draft and draft.stem}.json", about)
    for rows, seconds in enumerate(passes, 1):
        known.costs.add_profile({rows: seconds}, {rows})
    known.costs.profiled = 12
    for _ in range(9 if draft else 0):
        known.costs.add_first_draft_step(step, 1)
        known.costs.add_draft_step(step)
    if agreement is not None:
        calibration = known.calibration("eagle3", "match", 0.0)
        for k in range(400):
            calibration.observe([2.0], [1.0 if k % 10 < 10 * agreement else 0.0])
    known.save()


@pytest.fixture
def two(shelf):
    """A target between a draft of its family and an EAGLE-3 one."""
    target = write_cycle_llama(shelf / NAME)
    return target, write_eagle3(shelf / "eagle3-a.gguf"), write_dflash(shelf / "dspark-b.gguf")


def chosen(target):
    draft, line = find_draft(target)
    return draft and draft.name, line


def test_the_fastest_here_is_chosen(two):
    """First by kind and size, then by what their guesses cost, then by how many were right."""
    target, eagle, block = two
    name, line = chosen(target)
    assert name == "dspark-b.gguf"  # one pass for all of its guesses
    assert "estimated from the sizes" in line
    assert "faster here than eagle3-a.gguf (EAGLE-3)" in line
    kept(target, block, 2.0)
    kept(target, eagle, 0.05)
    name, line = chosen(target)
    assert name == "eagle3-a.gguf"
    assert "costs measured here" in line
    kept(target, block, 0.3)
    kept(target, eagle, 0.2, agreement=0.1)
    name, line = chosen(target)
    assert name == "dspark-b.gguf"
    assert "by what it did here" in line  # of the other one
    kept(target, eagle, 0.01, agreement=0.9)
    assert chosen(target)[0] == "eagle3-a.gguf"


def test_none_that_would_win_nothing(two):
    """As measured here; a line says so, and a draft that was not measured is still tried."""
    target, eagle, block = two
    kept(target, block, 9.0)
    assert chosen(target)[0] == "eagle3-a.gguf"
    kept(target, eagle, 9.0)
    name, line = chosen(target)
    assert name is None
    assert line.startswith("no draft is used: ")
    assert "would win nothing here" in line
    with load_pair(target) as pair:
        assert pair.draft_cache() is None
        assert pair.found == line


def test_what_was_learned_elsewhere_does_not_count(two):
    """Of another machine, another file of this name, or in a damaged file."""
    target, eagle, _ = two
    kept(target, eagle, 0.01, agreement=1.0)
    assert chosen(target)[0] == "eagle3-a.gguf"
    assert learned_of(file_stamp(target), {"devices": []}) == []
    (learned_dir() / "damaged.json").write_bytes(b'{"about": [')
    (learned_dir() / "list.json").write_bytes(b"[]")
    assert len(learned_of(file_stamp(target), library.machine())) == 1
    write_eagle3(eagle, Eagle(random=True, own=True))  # another file
    assert chosen(target)[0] == "dspark-b.gguf"


def test_a_pair_says_of_what_it_learned(two):
    """What one start measures the next one chooses by."""
    target, eagle, _ = two
    from dspark_gguf import Speculation

    with load_pair(target, eagle) as pair:
        pair.learned(Speculation())
    [known] = learned_of(file_stamp(target), library.machine())
    assert known.about["draft"] == file_stamp(eagle)
    assert known.costs.covers(1, drafts=True)
    outlook = catalog._outlook(Found(eagle, "eagle3", ""), read_header(target), [known])
    assert "estimated" not in outlook.text


def test_a_guess_costs_what_it_reads(shelf):
    """One head and the output; of a block draft what it has and borrows; no embeddings."""
    target = read_header(write_mtp(shelf / NAME, CYCLE))
    sizes = {name: tensor.size for name, tensor in target.tensors.items()}
    head = sum(size for name, size in sizes.items() if name.startswith("blk.1."))
    whole = sum(sizes.values()) - head - sizes["token_embd.weight"]
    read = head + sizes["output.weight"]
    assert share_of_a_pass(target, target) == pytest.approx(read / whole)
    sidecar = read_header(write_head(shelf / "mtp-toy.gguf"))
    assert share_of_a_pass(sidecar, target) == pytest.approx(read / whole)
    experts = Made("glm4moe", how="cycle")
    mixture = read_header(write_mtp(shelf / "moe.gguf", experts))
    used = sum(
        one.size * (0.5 if "_exps" in name else 1.0)
        for name, one in mixture.tensors.items()
        if name.startswith("blk.1.")
    )
    assert share_of_a_pass(mixture, mixture) > used / sum(
        one.size for one in mixture.tensors.values()
    )


REPO = "org/Toy-1b-GGUF"


@pytest.fixture
def hub(tmp_path):
    """A repository with a model in two quantizations, its heads, and an EAGLE-3 draft."""
    files = {
        "Toy-1b-Q4_K_M.gguf": write_trunk(tmp_path / "q4.gguf"),
        "Toy-1b-Q8_0.gguf": write_mtp(tmp_path / "q8.gguf", CYCLE.but(seed=2), keep=TRUNK),
        "mtp-Toy-1b-Q8_0.gguf": write_head(tmp_path / "mtp.gguf"),
        "mtp-Toy-1b-Q4_K_M.gguf": write_mtp(tmp_path / "mtp4.gguf", CYCLE.but(seed=3), keep=HEADS),
    }
    with serving(
        {REPO: files, "org/d-GGUF": {"eagle3-d.gguf": files["mtp-Toy-1b-Q8_0.gguf"]}}
    ) as it:
        yield it


def test_a_model_of_the_hub_brings_its_draft(hub, tmp_path):
    """The sidecar of the same quantization, and no other file; then no hub is needed."""
    words = ("run", "-v", "--raw", "-m", REPO, "-n", "8", "--temp", "0", "ABCD")
    done = hub.run(tmp_path / "home", *words)
    assert done.returncode == 0, done.stderr
    names = {"Toy-1b-Q4_K_M.gguf", "mtp-Toy-1b-Q4_K_M.gguf"}
    assert {name for name, _, _ in hub.sent} == names
    assert "draft found beside the model: mtp-Toy-1b-Q4_K_M.gguf (MTP)" in done.stderr
    asked = len(hub.sent)
    again = hub.run(tmp_path / "home", *words, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "mtp-Toy-1b-Q4_K_M.gguf (MTP)" in again.stderr
    assert again.stdout == done.stdout
    assert len(hub.sent) == asked


def test_pull_with_and_without_a_draft(hub, tmp_path):
    """Paths of both; a draft's own repository; -d none leaves the sidecar where it is."""
    done = hub.run(tmp_path / "home", "pull", f"{REPO}:Q8_0")
    assert done.returncode == 0, done.stderr
    assert [Path(line).name for line in done.stdout.splitlines()] == [
        "Toy-1b-Q8_0.gguf", "mtp-Toy-1b-Q8_0.gguf",
    ]  # fmt: skip
    assert f"use it: dspark-gguf chat -m {REPO}:Q8_0\n" in done.stderr
    alone = hub.run(tmp_path / "home", "pull", "org/d-GGUF")
    assert alone.returncode == 0, alone.stderr
    assert Path(alone.stdout.strip()).name == "eagle3-d.gguf"
    before = len(hub.sent)
    words = ("run", "--raw", "-m", REPO, "-d", "none", "-n", "2", "ABCD")
    plain = hub.run(tmp_path / "other", *words)
    assert plain.returncode == 0, plain.stderr
    assert [name for name, _, _ in hub.sent[before:]] == ["Toy-1b-Q4_K_M.gguf"]


def test_a_sidecar_is_no_model(model_folder, dspark):
    """`models --local` lists it as a draft, -m refuses it, and `suggest` knows it."""
    target = write_trunk(model_folder / NAME)
    sidecar = write_head(model_folder / "renamed.gguf")
    printed = dspark("models", "--local").stdout
    models, _, drafts = printed.partition("drafts, each for the one target")
    assert NAME in models
    assert "renamed.gguf" not in models
    assert f"MTP   -d {sidecar}" in drafts
    rows = json.loads(dspark("models", "--local", "--json").stdout)
    assert {Path(row["path"]).name: row["kind"] for row in rows} == {
        NAME: "model", "renamed.gguf": "mtp",
    }  # fmt: skip
    refused = dspark("run", "-m", sidecar, "hi")
    assert refused.exit_code == 1
    assert "Give it with -d" in refused.stderr
    found = json.loads(dspark("suggest", "-m", target, "--no-learn", "--json").stdout)
    assert ("mtp", str(sidecar)) in {(row["kind"], row["draft"]) for row in found}


def test_suggest_knows_heads_inside(shelf, dspark):
    """Under the name that -d takes for them."""
    target = write_mtp(shelf / NAME, CYCLE)
    done = dspark("suggest", "-m", target, "--no-learn", "--json")
    assert done.exit_code == 0, done.stderr
    [row] = [row for row in json.loads(done.stdout) if row["kind"] == "mtp"]
    assert (row["draft"], row["origin"]) == ("mtp", "inside the model")
    again = dspark("run", "--raw", "-m", target, "-d", row["draft"], "-n", "4", "--no-learn", "ABC")
    assert again.exit_code == 0, again.stderr


def test_suggest_ranks_other_tokenizers_last(model_folder, dspark):
    """They are there, few of them, behind what has the target's own tokens."""
    target = write_llama(model_folder.parent / "target.gguf", Tiny(width=256, layers=8))
    write_llama(model_folder / "own.gguf", Tiny(noise=0.1))
    for padding in (130, 140, 150, 160):
        write_llama(model_folder / f"other-{padding}.gguf", Tiny(padding=padding))
    done = dspark("suggest", "-m", target, "--no-learn", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    foreign = [Path(row["draft"]).name for row in rows if row["kind"] == "foreign"]
    assert sorted(foreign) == ["other-140.gguf", "other-150.gguf", "other-160.gguf"]
    assert [row["kind"] for row in rows][-3:] == ["foreign"] * 3
    assert all(row["speedup"]["kinds"] for row in rows[-3:])


def test_doctor_finds_it_too(shelf, dspark):
    """With the line that says why, and examines it."""
    target = write_cycle_llama(shelf / NAME)
    write_eagle3(shelf / "eagle3-a.gguf")
    done = dspark("doctor", "-m", target, "--json", "--no-learn")
    sections = json.loads(done.stdout)["sections"]
    assert "draft found beside the model: eagle3-a.gguf" in sections["models"]["text"]
    assert "EAGLE-3 draft" in sections["draft"]["text"]
    (shelf / "inside").mkdir()
    inside = write_mtp(shelf / "inside" / NAME, CYCLE)
    sections = json.loads(dspark("doctor", "-m", inside, "--json", "--no-learn").stdout)["sections"]
    assert "its own MTP head" in sections["models"]["text"]
    assert "own prediction heads" in sections["draft"]["text"]
    assert sections["draft"]["need"]["weights"] == 0  # the target's file is counted once


def test_a_pair_with_heads_inside(tmp_path):
    """One file of one repository, whatever else it has; for the drop-in too."""
    name = "Qwen3.6-27B-MTP-Q4_K_M.gguf"
    files = {name: write_mtp(tmp_path / "m.gguf", CYCLE), "Qwen3.6-27B-MTP-Q8_0.gguf": tmp_path}
    with serving({"unsloth/Qwen3.6-27B-MTP-GGUF": files}) as there:
        files["Qwen3.6-27B-MTP-Q8_0.gguf"] = files[name]
        home = tmp_path / "home"
        done = there.run(home, "pull", "qwen3.6-27b-mtp")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(".gguf") == 1
        assert done.stderr.endswith("use it: dspark-gguf chat -m qwen3.6-27b-mtp\n")
        words = ("run", "-v", "--raw", "-m", "qwen3.6-27b-mtp", "-n", "2", "ABC")
        ran = there.run(home, *words)
        assert ran.returncode == 0, ran.stderr
        assert "draft (MTP) the target's own prediction heads: " in ran.stderr
        assert [sent for sent, _, _ in there.sent] == [name]
        shown = there.run(home, "models", "qwen3.6-27b-mtp")
        assert shown.stdout.count(name) == 2  # the target here, and the draft here


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

    def only_without(model, tell):
        if model.has_heads:
            raise ResourceError("no memory on the GPU", "")
        return load(model, tell)

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


def test_choose_among_nothing(shelf):
    """No draft, no line."""
    target = read_header(write_cycle_llama(shelf / NAME))
    assert choose(target, []) == (None, "")
