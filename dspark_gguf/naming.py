"""What models on a hub are called, and which files of a repository are meant.

``org/repo:what`` names one, as users of llama.cpp and Ollama write it. `what` is a quantization
such as ``Q4_K_M``, a file, or a glob pattern; without it, the usual quantization of the repository.
A model is one file or several shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import SHARD, shards

#: Quantizations to take where none is named, best first: llama.cpp's choice for a target; a draft
#: in Q8_0 accepts like one in bf16 and is faster (llama.cpp#25549).
PREFERRED = {"target": ("Q4_K_M", "Q8_0"), "draft": ("Q8_0", "Q4_K_M")}

_NAME = re.compile(
    r"(?:(?:https?://)?(?:hf\.co|huggingface\.co)/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(.+))?"
)
#: Such as ``Q4_K_M`` or ``UD-IQ2_XXS``, in the name of a file.
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|B?F(?:16|32)|MXFP4\w*)(?![A-Za-z0-9])", re.I
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub; `what` may be empty."""

    repo: str
    what: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name in `text`; None if `text` is something else, such as the path of a GGUF."""
        found = _NAME.fullmatch(text)
        if found is None or (found[2] is None and text.lower().endswith(".gguf")):
            return None
        return cls(found[1], found[2] or "")

    def __str__(self) -> str:
        return f"{self.repo}:{self.what}" if self.what else self.repo


def models_among(files: Iterable[str]) -> list[list[str]]:
    """Models in a folder, each as its files; without incomplete ones and other kinds of files."""
    names = sorted(files)
    models = []
    for name in names:
        base, shard = PurePosixPath(name).name.lower(), SHARD.search(name)
        if not base.endswith(".gguf") or "mmproj" in base or "imatrix" in base:
            continue
        if shard is None:
            models.append([name])
        elif shard["number"] == "00001":
            parts = [path.as_posix() for path in shards(Path(name))]
            if set(parts) <= set(names):
                models.append(parts)
    return models


def chosen(name: HubName, files: Iterable[str], role: str) -> list[str]:
    """Files of the one model that `name` means.

    Args:
        name: see the module.
        files: what the repository has.
        role: ``target`` or ``draft``, which prefer other quantizations.

    Raises:
        UsageError: none or several.

    """
    models = models_among(files)
    matching = [model for model in models if _means(name.what, model[0])]
    if len(matching) > 1 and not name.what:
        for quantization in PREFERRED[role]:
            usual = [model for model in matching if _means(quantization, model[0])]
            if len(usual) == 1:
                return usual[0]
    if len(matching) == 1:
        return matching[0]
    if not models:
        hint = "Choose a repository with GGUF files, or convert this one."
        raise UsageError(f"{name.repo} has no GGUF model", hint)
    found = ", ".join(_short(model[0]) for model in matching or models)
    raise UsageError(
        f"{name} means {len(matching)} models: {found}"
        if matching
        else f"{name.repo} has no model of that name: it has {found}",
        f"Name one of them, as {name.repo}:FILE.gguf or {name.repo}:Q4_K_M.",
    )


def _means(what: str, file: str) -> bool:
    if what.lower().endswith(".gguf") or any(sign in what for sign in "*?["):
        return fnmatch(file, what) or fnmatch(PurePosixPath(file).name, what)
    pattern = rf"(?<![A-Za-z0-9]){re.escape(what)}(?![A-Za-z0-9_])" if what else ""
    return re.search(pattern, file, re.I) is not None


def _short(file: str) -> str:
    found = QUANTIZATION.findall(file)
    return str(found[-1]) if found else file
