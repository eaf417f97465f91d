"""GGUF files of other programs on this machine: Ollama, LM Studio, llama.cpp, the hub's cache."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from dspark_gguf import hub, paths
from dspark_gguf.catalog.demo import FROM_PACKAGE, source_model
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.naming import HubName, files_of_models
from dspark_gguf.paths import cache_path, size_on_disk, walk

OLLAMA = "ollama:"
#: The registry of a name without one.
_OLLAMA_HOST = "registry.ollama.ai"
_OLLAMA_WEIGHTS = "application/vnd.ollama.image.model"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk."""

    source: str  # the program that keeps it
    name: str  # what to write after -m
    path: Path  # its (first) file
    size: int  # bytes of all its files
    kind: str = "model"  # or of a draft that needs its target, such as mtp


def find_local(name: str, role: str) -> Path | None:
    """The file of a pair's model if it is on this machine, without network."""
    if name.startswith(FROM_PACKAGE):
        with suppress(UsageError):
            return source_model()
    on_hub = HubName.parse(name)
    return hub.find_cached(on_hub, role) if on_hub else None


def stores(
    system: str = sys.platform, home: Path | None = None, environ: Mapping[str, str] = os.environ
) -> list[tuple[str, Path]]:
    """Programs and the folders where they keep models on this system; a folder may be missing."""
    if home is None:
        try:
            home = paths.home()
        except DSparkError:  # what variables name is looked through all the same
            home = Path(os.devnull)  # there is nothing below it
    if system == "darwin":
        caches = home / "Library" / "Caches"
    elif system == "win32":
        caches = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    ollama = [environ.get("OLLAMA_MODELS") or home / ".ollama" / "models"]
    if system.startswith("linux"):
        ollama.append("/usr/share/ollama/.ollama/models")  # where its service keeps them
    studio = home / ".lmstudio"
    with suppress(OSError, ValueError):
        studio = Path((home / ".lmstudio-home-pointer").read_text("utf-8").strip())
    moved = _json(studio / "settings.json").get("downloadsFolder")
    return [
        *(("Ollama", Path(folder)) for folder in ollama),
        ("LM Studio", Path(str(moved or studio / "models"))),
        ("LM Studio", home / ".cache" / "lm-studio" / "models"),  # until version 0.3.6
        ("llama.cpp", Path(environ.get("LLAMA_CACHE") or caches / "llama.cpp")),
    ]


def local_files(left_out: list[str] | None = None) -> list[LocalModel]:
    """Every model and draft that is found, each file once.

    `left_out` gets a line for each other file: a partial download, a projector, an unreadable one.
    """
    from dspark_gguf.engine.gguf import read_header
    from dspark_gguf.engine.kinds import kind_of_draft

    found: dict[str, LocalModel | None] = {}
    for model in files_here():
        place = os.path.realpath(model.path)
        if place in found:
            continue
        found[place], problem = None, ""
        try:
            header = read_header(model.path)
            problem = header.other_kind
            kind = kind_of_draft(header)
            found[place] = replace(model, kind="model" if kind == "plain" else kind)
        except DSparkError as error:
            problem = error.problem
        except OSError as error:  # it vanished meanwhile
            problem = str(error.strerror)
        if problem:
            found[place] = None
            if left_out is not None:
                left_out.append(f"{model.name}: {problem}")
    return [model for model in found.values() if model]


def files_here() -> Iterator[LocalModel]:
    """All files of programs, models and drafts alike, judged by their names alone."""
    for source, folder in stores():
        yield from _ollama(folder) if source == "Ollama" else _files(source, folder)
    for repo, snapshot in hub.snapshots():
        yield from _files("Hugging Face cache", snapshot, repo)
    yield from _files("dspark-gguf", cache_path("drafts"))


def ollama_path(name: str) -> Path | None:
    """The weights of a model that Ollama has under a name such as ``llama3.2:3b``, or None.

    As in Ollama, case is ignored, and these are the same: ``llama3.2``, ``llama3.2:latest``,
    ``library/llama3.2`` and ``registry.ollama.ai/library/llama3.2:latest``.
    """
    words = name.lower().removeprefix("https://").removeprefix("http://").split("/")
    model, _, tag = words[-1].partition(":")
    wanted = [*(words[:-1] or ["library"]), model, tag or "latest"]
    found = {
        place: blob
        for source, folder in stores()
        if source == "Ollama"
        for place, blob in _ollama_manifests(folder)
    }
    fits = [place for place in found if [word.lower() for word in place][-len(wanted) :] == wanted]
    return found[max(fits, key=lambda place: place[0] == _OLLAMA_HOST)] if fits else None


def _ollama(folder: Path) -> Iterator[LocalModel]:
    for words, blob in _ollama_manifests(folder):
        # As `ollama list` shows it, without the usual registry and namespace.
        usual = (_OLLAMA_HOST, "library")
        short = words[2:-1] if words[:2] == usual else words[words[0] == _OLLAMA_HOST : -1]
        yield from _model("Ollama", f"{OLLAMA}{'/'.join(short)}:{words[-1]}", blob)


def _ollama_manifests(folder: Path) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Ollama's models: host, namespace, model and tag, as in the manifest's path; and weights."""
    root = folder / "manifests"
    for place, tags in walk(root):
        for tag in tags:
            layers = _json(place / tag).get("layers")
            for layer in layers if isinstance(layers, list) else ():
                if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_WEIGHTS:
                    digest = PurePath(str(layer.get("digest")).replace(":", "-")).name
                    words = (*place.relative_to(root).parts, tag)
                    blob = folder / "blobs" / digest
                    if os.path.isfile(blob) and len(words) > 1:
                        yield words, blob


def _files(source: str, folder: Path, repo: str = "") -> Iterator[LocalModel]:
    for first, *_ in files_of_models(hub.files_of(folder)):
        path = folder / first
        yield from _model(source, f"{repo}:{first}" if repo else str(path), path)


def _model(source: str, name: str, path: Path) -> Iterator[LocalModel]:
    with suppress(OSError):  # it vanished meanwhile
        yield LocalModel(source, name, path, size_on_disk(path))


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
