"""GGUF files that other programs keep on this machine: Ollama, LM Studio, llama.cpp, the hub."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dspark_gguf import hub
from dspark_gguf.naming import models_among
from dspark_gguf.paths import cache_dir, size_on_disk

OLLAMA = "ollama:"
_OLLAMA_WEIGHTS = "application/vnd.ollama.image.model"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk.

    Attributes:
        source: the program that keeps it.
        name: what to write after -m.
        path: its (first) file.
        size: bytes of all its files.

    """

    source: str
    name: str
    path: Path
    size: int


def stores(
    system: str = sys.platform,
    home: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> list[tuple[str, Path]]:
    """Where programs keep their models on this system: name and folder, there or not.

    Args:
        system: as ``sys.platform``.
        home: the user's folder.
        environ: variables that move the folders.

    """
    home = home or Path.home()
    if system == "darwin":
        caches = home / "Library" / "Caches"
    elif system == "win32":
        caches = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    ollama = [environ.get("OLLAMA_MODELS") or home / ".ollama" / "models"]
    if system.startswith("linux"):
        ollama.append("/usr/share/ollama/.ollama/models")  # where its service keeps them
    studio = _studio_home(home)
    return [
        *(("Ollama", Path(folder)) for folder in ollama),
        ("LM Studio", _studio_models(studio)),
        ("LM Studio", home / ".cache" / "lm-studio" / "models"),  # until version 0.3.6
        ("llama.cpp", Path(environ.get("LLAMA_CACHE") or caches / "llama.cpp")),
    ]


def _studio_home(home: Path) -> Path:
    try:
        return Path((home / ".lmstudio-home-pointer").read_text("utf-8").strip())
    except OSError:
        return home / ".lmstudio"


def _studio_models(studio: Path) -> Path:
    settings = _json(studio / "settings.json")
    return Path(str(settings.get("downloadsFolder") or studio / "models"))


def local_models() -> list[LocalModel]:
    """Every model that is found, each file once, by program and name."""
    found: dict[Path, LocalModel] = {}
    for model in _all():
        found.setdefault(model.path.resolve(), model)
    return list(found.values())


def _all() -> Iterator[LocalModel]:
    for source, folder in stores():
        yield from _ollama(folder) if source == "Ollama" else _files(source, folder)
    yield from _hub_cache(hub.cache_folder())
    yield from _files("dspark-gguf", cache_dir("drafts"))


def ollama_path(name: str) -> Path | None:
    """The weights of a model as Ollama names it, such as ``llama3.2:3b``; None: it has none."""
    wanted = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    for source, folder in stores():
        if source == "Ollama":
            for model in _ollama(folder):
                if model.name == OLLAMA + wanted or model.name.endswith(f"/{wanted}"):
                    return model.path
    return None


def _ollama(folder: Path) -> Iterator[LocalModel]:
    """From its manifests: HOST/NAMESPACE/MODEL/TAG, each a list of blobs by their hashes."""
    root = folder / "manifests"
    for place, names in _walk(root):
        for tag in names:
            layers = _json(place / tag).get("layers")
            for layer in layers if isinstance(layers, list) else ():
                if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_WEIGHTS:
                    digest = PurePath(str(layer.get("digest")).replace(":", "-")).name
                    blob = folder / "blobs" / digest
                    if blob.is_file():
                        model = place.relative_to(root).as_posix().split("/")
                        short = model[2:] if model[1:2] == ["library"] else model
                        name = f"{OLLAMA}{'/'.join(short)}:{tag}"
                        yield LocalModel("Ollama", name, blob, blob.stat().st_size)


def _files(source: str, folder: Path) -> Iterator[LocalModel]:
    for place, names in _walk(folder):
        for files in models_among(names):
            path = place / files[0]
            yield LocalModel(source, str(path), path, size_on_disk(path))


def _hub_cache(folder: Path) -> Iterator[LocalModel]:
    for snapshot in sorted(folder.glob("models--*--*/snapshots/*")):
        repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")]
        for files in models_among(name for name in names if (snapshot / name).is_file()):
            path = snapshot / files[0]
            name = f"{repo}:{files[0]}"
            yield LocalModel("Hugging Face cache", name, path, size_on_disk(path))


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    # What cannot be read is left out: os.walk goes on.
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield Path(place), sorted(names)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
