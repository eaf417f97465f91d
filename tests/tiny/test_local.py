"""GGUF files that other programs keep, and the tables of `models`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dspark_gguf import hub, load_pair
from dspark_gguf.catalog import listing
from dspark_gguf.catalog.local import local_models, ollama_path, stores
from dspark_gguf.catalog.pairs import known_pairs
from dspark_gguf.catalog.resolve import resolve
from dspark_gguf.cli import main
from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.learned import Learned, learned_path, seconds_per_byte
from dspark_gguf.naming import HubName
from tests.foreign import gguf_header, gguf_seeds
from tests.foreign import text as gguf_text

HOME = Path("/home/me")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without any model; nothing of the real one is seen."""
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "hub")
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


#: A whole model, as far as its header tells.
MODEL = gguf_seeds()[0]
SIZE = len(MODEL)


def put(path, content=MODEL):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("system", "environ", "folders"),
    [
        ("linux", {}, [
            ".ollama/models", "/usr/share/ollama/.ollama/models", ".lmstudio/models",
            ".cache/lm-studio/models", ".cache/llama.cpp"]),
        ("darwin", {}, [
            ".ollama/models", ".lmstudio/models", ".cache/lm-studio/models",
            "Library/Caches/llama.cpp"]),
        ("win32", {"LOCALAPPDATA": "/home/me/Local"}, [
            ".ollama/models", ".lmstudio/models", ".cache/lm-studio/models", "Local/llama.cpp"]),
        ("win32", {"OLLAMA_MODELS": "/d/ollama", "LLAMA_CACHE": "/d/llama"}, [
            "/d/ollama", ".lmstudio/models", ".cache/lm-studio/models", "/d/llama"]),
    ],
)  # fmt: skip
def test_where_programs_keep_their_models(system, environ, folders):
    """On each system, and where variables move it."""
    assert [path for _, path in stores(system, HOME, environ)] == [HOME / name for name in folders]


def test_lm_studio_that_was_moved(tmp_path):
    """By its pointer and by its settings."""
    moved = tmp_path / "moved"
    put(tmp_path / ".lmstudio-home-pointer", str(moved).encode())
    put(moved / "settings.json", json.dumps({"downloadsFolder": "/big/models"}).encode())
    assert ("LM Studio", Path("/big/models")) in stores("linux", tmp_path, {})
    put(moved / "settings.json", b"[damaged")
    assert ("LM Studio", moved / "models") in stores("linux", tmp_path, {})


def ollama(home, place, digest="sha256:ab", media="application/vnd.ollama.image.model"):
    layers = [{"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:cd"}]
    layers.append({"mediaType": media, "digest": digest})
    put(home / ".ollama/models/manifests" / place, json.dumps({"layers": layers}).encode())
    return put(home / ".ollama/models/blobs/sha256-ab")


def test_ollama(home):
    """Manifests say what a blob is called; damaged ones and other layers are passed over."""
    blob = ollama(home, "registry.example/library/llama3.2/3b")
    ollama(home, "hub.example/org/model-GGUF/Q4_K_M")
    ollama(home, "registry.example/library/gone/latest", digest="sha256:ff")
    ollama(home, "registry.example/library/other/latest", media="application/x.tensor")
    put(home / ".ollama/models/manifests/stray", b"{}")
    put(home / ".ollama/models/manifests/registry.example/library/bad/latest", b"{")
    assert ollama_path("llama3.2:3b") == blob
    assert ollama_path("org/model-GGUF:Q4_K_M") == blob
    for name in ("llama3.2", "gone", "other", "bad"):
        assert ollama_path(name) is None
    # Both names are one file: it is shown once.
    assert [model.name for model in local_models()] == ["ollama:hub.example/org/model-GGUF:Q4_K_M"]


OURS = "registry.ollama.ai/library/llama3.2/3b"


@pytest.mark.parametrize(
    "name",
    [
        "llama3.2:3b", "Llama3.2:3B", "library/llama3.2:3b",
        "registry.ollama.ai/library/llama3.2:3b",
        "https://registry.ollama.ai/library/llama3.2:3b", "hf.co/Org/Model-GGUF:q4_k_m",
        "org/model-gguf:Q4_K_M", "tiny", "tiny:latest", "me/Mine",
        "registry.example/library/llama3.2:3b",
    ],
)  # fmt: skip
def test_names_as_ollama_takes_them(home, name):
    """Any case, with and without registry, `library/` and `latest`; its own registry first."""
    for place in (
        "registry.example/library/llama3.2/3b", OURS, "hf.co/org/Model-GGUF/Q4_K_M",
        "registry.ollama.ai/library/tiny/latest", "registry.ollama.ai/me/mine/latest",
    ):  # fmt: skip
        path = home / ".ollama/models/blobs" / f"sha256-{place.replace('/', '-')}"
        ollama(home, place, digest=path.name)
        put(path)
    found = ollama_path(name)
    assert found is not None
    if name.lower().endswith("llama3.2:3b"):
        assert ("example" in found.name) == ("example" in name)
    assert ollama_path("registry.example/library/tiny") is None
    assert {model.name for model in local_models()} == {
        "ollama:registry.example/library/llama3.2:3b", "ollama:llama3.2:3b",
        "ollama:hf.co/org/Model-GGUF:Q4_K_M", "ollama:tiny:latest", "ollama:me/mine:latest",
    }  # fmt: skip


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def test_links_of_other_programs(home):
    """Linked folders are looked into; dead links, circles and folders named like files are not."""
    put(home / "disk/org/far.gguf")
    put(home / "disk/repo/snapshots/0123/h.gguf")
    for store in (".lmstudio/models", ".cache/llama.cpp", ".ollama/models/manifests/host"):
        link(home / store / "dead.gguf", home / "nothing")
        link(home / store / "self.gguf", home / store / "self.gguf")
        link(home / store / "again", home / store)
        (home / store / "folder.gguf").mkdir()
    link(home / ".lmstudio/models/org", home / "disk/org")
    link(home / "hub/models--org--h", home / "disk/repo")
    link(home / "hub/models--org--dead", home / "nothing")
    link(home / "hub/models--org--d/snapshots/0123/d.gguf", home / "nothing")
    link(home / "hub/models--org--d/snapshots/dead", home / "nothing")
    names = [str(home / ".lmstudio/models/org/far.gguf"), "org/h:h.gguf"]
    assert [model.name for model in local_models()] == names
    printed = CliRunner().invoke(main, ["models", "--local"])
    assert printed.exit_code == 0
    assert "far.gguf" in printed.stdout
    assert (
        hub.find_cached(HubName("org/h"), "target")
        == home / "hub/models--org--h/snapshots/0123/h.gguf"
    )
    assert hub.find_cached(HubName("org/d"), "target") is None
    for name, said in (
        (".lmstudio/models/dead.gguf", "the link points to nothing"),
        ("disk", "is a directory"),
    ):
        refused = CliRunner().invoke(main, ["inspect", str(home / name)])
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_what_may_not_be_read_or_vanishes(home, monkeypatch):
    """Another user's folder and a file that goes while we look: the rest is listed."""
    put(home / ".lmstudio/models/a/a.gguf")
    put(home / ".lmstudio/models/b/b.gguf")
    put(home / ".lmstudio/models/c/c.gguf")
    put(home / "hub/models--org--h/snapshots/0123/h.gguf")
    isfile = os.path.isfile

    def refusing(list_folder):
        def listed(place="."):
            if Path(place).name in ("a", "hub"):
                raise PermissionError(13, "Permission denied")
            return list_folder(place)

        return listed

    def vanishing(path):
        was = isfile(path)
        if Path(path).name == "b.gguf":
            Path(path).unlink(missing_ok=True)
        return was

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(os.path, "isfile", vanishing)
    assert [model.path.name for model in local_models()] == ["c.gguf"]


NOT_MODELS = {
    "half a download": (MODEL[:-300], "bytes"),
    "half a header": (MODEL[:90], "read key-value pairs"),
    "a projector": (("clip", "model"), "projector"),
    "a projector by its type": (("llama", "mmproj"), "projector"),
    "an adapter": (("llama", "adapter"), "adapter"),
    "an importance matrix": (("llama", "imatrix"), "importance"),
    "an image model": (("flux", "model"), "without a vocabulary"),
    "a text diffusion model": (("dream", "model"), "diffusion"),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_what_is_no_model(home, kind):
    """It is not listed among the models, but said; `inspect` and -m say what it is."""
    data, said = NOT_MODELS[kind]
    if isinstance(data, tuple):
        data = gguf_header(
            ("general.architecture", 8, gguf_text(data[0])),
            ("general.type", 8, gguf_text(data[1])),
            tensors=[("a.weight", (32, 2), 0)],
        ) + bytes(512)  # fmt: skip
    path = put(home / ".lmstudio/models/org/m/m-Q4_0.gguf", data)
    left_out = []
    assert local_models(left_out) == []
    assert re.search(said, left_out[0])
    printed = CliRunner().invoke(main, ["models", "--local"])
    assert "m-Q4_0.gguf: " in printed.stdout
    with pytest.raises(ModelError, match=said):
        load_pair(path)
    assert re.search(said, CliRunner().invoke(main, ["inspect", str(path)]).output)


def test_every_store(home, tiny_files):
    """Each with what can be pasted after -m; projectors and halves of split models are none."""
    put(home / ".lmstudio/models/org/m-GGUF/m-Q4_0.gguf")
    put(home / ".lmstudio/models/org/m-GGUF/mmproj-m.gguf")
    put(home / ".cache/llama.cpp/org_m-00001-of-00002.gguf")
    put(home / ".cache/llama.cpp/org_m-00002-of-00002.gguf", MODEL + b"22")
    put(home / ".cache/llama.cpp/half-00001-of-00002.gguf")
    blob = put(home / "hub/models--org--h--GGUF/blobs/ab")
    link = home / "hub/models--org--h--GGUF/snapshots/0123/sub/h.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    found = {(model.source, model.name, model.size) for model in local_models()}
    assert found == {
        ("LM Studio", str(home / ".lmstudio/models/org/m-GGUF/m-Q4_0.gguf"), SIZE),
        ("llama.cpp", str(home / ".cache/llama.cpp/org_m-00001-of-00002.gguf"), 2 * SIZE + 2),
        ("Hugging Face cache", "org/h--GGUF:sub/h.gguf", SIZE),
    }
    printed = CliRunner().invoke(main, ["models", "--local"])
    assert printed.exit_code == 0
    assert "Hugging Face cache  0.00  -m org/h--GGUF:sub/h.gguf" in printed.stdout
    as_json = json.loads(CliRunner().invoke(main, ["models", "--local", "--json"]).stdout)
    assert {model["name"] for model in as_json} == {name for _, name, _ in found}


def test_what_is_offered_can_be_used(home, tiny_files):
    """`inspect` with each name that `models --local` prints."""
    shutil.copy(tiny_files.target, ollama(home, "registry.example/library/tiny/latest"))
    put(home / "hub/models--org--h/snapshots/0123/h.gguf", tiny_files.draft.read_bytes())
    put(home / ".cache/llama.cpp/with space.gguf", tiny_files.draft.read_bytes())
    names = [model.name for model in local_models()]
    assert len(names) == 3
    for name in [*names, "ollama:tiny"]:
        done = CliRunner().invoke(main, ["inspect", name])
        assert done.exit_code == 0, done.stderr
        assert "architecture      llama" in done.stdout
    missing = CliRunner().invoke(main, ["inspect", "ollama:huge"])
    assert missing.exit_code == 2
    assert "models --local" in missing.stderr


def test_no_model_anywhere(home):
    """It says where was looked."""
    assert "have no model here" in CliRunner().invoke(main, ["models", "--local"]).stdout


def test_the_table_of_pairs(home, monkeypatch):
    """What fits this machine, and what is here."""
    monkeypatch.setattr(listing, "machine_gigabytes", lambda: 15.6)
    folder = home / "hub/models--Qwen--Qwen3-0.6B-GGUF/snapshots/0123"
    put(folder / "Qwen3-0.6B-Q8_0.gguf")
    done = CliRunner().invoke(main, ["models"])
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
    values = json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)
    [qwen] = [row for row in values if row["name"] == "qwen3-8b"]
    assert qwen["downloaded"] == {"target": None, "draft": str(folder / "Qwen3-0.6B-Q8_0.gguf")}
    assert qwen["gigabytes"] == {"target": 5.0, "draft": 0.64}
    assert qwen["fits"] is True


def test_one_pair(home):
    """All that the list knows; a wrong name is wrong use."""
    done = CliRunner().invoke(main, ["models", "qwen3-8b-dspark"])
    for text in ("deepseek-ai/dspark_qwen3_8b_block7", "convert it", "apache-2.0 + unknown"):
        assert text in done.stdout
    wrong = CliRunner().invoke(main, ["models", "qwen3-8c"])
    assert wrong.exit_code == 2
    assert "qwen3-8b" in wrong.stderr


def test_the_speed_of_a_pair_follows_from_its_size():
    """A tenth of a nanosecond a byte: 10 GB a second. Of experts, only the active ones are read."""
    pairs = {pair.name: pair for pair in known_pairs()}

    def speed(name, seconds=1e-10):
        return listing.facts(pairs[name], 64, seconds)["tokens_per_second"]

    assert speed("qwen3-8b") == pytest.approx(2.0)
    assert speed("qwen3.6-35b-a3b") == pytest.approx(10 / 21 * 35 / 3, abs=0.01)
    assert speed("qwen3-8b", None) is None


def test_how_fast_weights_are_read(home, tiny_files):
    """As in passes of the largest model that was loaded here; else as memory is read."""
    assert 1e-13 < seconds_per_byte() < 1e-8
    known = Learned(learned_path({"a": "large one"}))
    known.costs.add_pass(1, 0.5)
    known.target_bytes = 10**9
    known.save()
    assert seconds_per_byte() == pytest.approx(0.5e-9)


def test_memory_of_this_machine():
    """Somewhere between a very small and a very large one, in GiB."""
    assert 0.5 < listing.machine_gigabytes() < 100_000


def test_an_empty_name_is_no_folder():
    """As a shell gives it where a variable is not set."""
    for names in (("", None), (" ", None), ("demo", "")):
        with pytest.raises(UsageError, match="the name of a model is empty"):
            resolve(*names)
