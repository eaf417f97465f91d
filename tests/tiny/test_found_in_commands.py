"""Drafts that are found: what each command does and says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_hub import serving
from tests.tiny.test_found import CYCLE, NAME, write_head, write_trunk
from tests.tiny_eagle3 import write_cycle_llama, write_eagle3
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_heads import HEADS, TRUNK, write_mtp

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
