"""GGUF files that other programs keep, and the tables of `models`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from dspark_gguf import hub, load_pair
from dspark_gguf.catalog.local import local_files, ollama_path, stores
from dspark_gguf.errors import ModelError
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
    assert [model.name for model in local_files()] == ["ollama:hub.example/org/model-GGUF:Q4_K_M"]


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
    assert {model.name for model in local_files()} == {
        "ollama:registry.example/library/llama3.2:3b", "ollama:llama3.2:3b",
        "ollama:hf.co/org/Model-GGUF:Q4_K_M", "ollama:tiny:latest", "ollama:me/mine:latest",
    }  # fmt: skip


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def test_links_of_other_programs(home, dspark):
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
    assert [model.name for model in local_files()] == names
    printed = dspark("models", "--local")
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
        refused = dspark("inspect", str(home / name))
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
    assert [model.path.name for model in local_files()] == ["c.gguf"]


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
def test_what_is_no_model(home, kind, dspark):
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
    assert local_files(left_out) == []
    assert re.search(said, left_out[0])
    printed = dspark("models", "--local")
    assert "m-Q4_0.gguf: " in printed.stdout
    with pytest.raises(ModelError, match=said):
        load_pair(path)
    assert re.search(said, dspark("inspect", str(path)).output)


def test_every_store(home, tiny_files, dspark):
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
    found = {(model.source, model.name, model.size) for model in local_files()}
    assert found == {
        ("LM Studio", str(home / ".lmstudio/models/org/m-GGUF/m-Q4_0.gguf"), SIZE),
        ("llama.cpp", str(home / ".cache/llama.cpp/org_m-00001-of-00002.gguf"), 2 * SIZE + 2),
        ("Hugging Face cache", "org/h--GGUF:sub/h.gguf", SIZE),
    }
    printed = dspark("models", "--local")
    assert printed.exit_code == 0
    assert "Hugging Face cache  0.00  -m org/h--GGUF:sub/h.gguf" in printed.stdout
    as_json = json.loads(dspark("models", "--local", "--json").stdout)
    assert {model["name"] for model in as_json} == {name for _, name, _ in found}


def test_what_is_offered_can_be_used(home, tiny_files, dspark):
    """`inspect` with each name that `models --local` prints."""
    shutil.copy(tiny_files.target, ollama(home, "registry.example/library/tiny/latest"))
    put(home / "hub/models--org--h/snapshots/0123/h.gguf", tiny_files.draft.read_bytes())
    put(home / ".cache/llama.cpp/with space.gguf", tiny_files.draft.read_bytes())
    names = [model.name for model in local_files()]
    assert len(names) == 3
    for name in [*names, "ollama:tiny"]:
        done = dspark("inspect", name)
        assert done.exit_code == 0, done.stderr
        assert "architecture      llama" in done.stdout
    missing = dspark("inspect", "ollama:huge")
    assert missing.exit_code == 2
    assert "models --local" in missing.stderr


def test_no_model_anywhere(home, dspark):
    """It says where was looked."""
    assert "have no model here" in dspark("models", "--local").stdout
