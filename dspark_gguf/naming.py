"""Names of models on a hub, and the files of a repository that they mean.

A name is ``org/repo:what``, as in llama.cpp and Ollama. `what` is a quantization such as
``Q4_K_M``, a file, or a glob pattern; by default the usual quantization of the repository. A model
is one file or several shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from dspark_gguf.errors import UsageError
from dspark_gguf.paths import SHARD, shards

#: Default quantizations, best first: llama.cpp's choice for a target; a draft in Q8_0 has the
#: acceptance of bf16 and is faster (llama.cpp#25549).
PREFERRED = {"target": ("Q4_K_M", "Q8_0"), "draft": ("Q8_0", "Q4_K_M"), "any": ("Q4_K_M", "Q8_0")}

_HUB = r"(?:https?://)?(?:hf\.co|huggingface\.co)/"
_REPO = r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_NAME = re.compile(rf"(?:{_HUB})?{_REPO}(?::(.+))?")
#: An address of the hub's pages: of a repository, or of a file as its download button has it.
_LINK = re.compile(
    rf"{_HUB}{_REPO}(?:/(?:tree|blob|resolve)/main(?:/([^?#]+\.gguf))?)?/?(?:[?#].*)?"
)
#: File name prefixes of drafts that need their target, as llama.cpp's converter and publishers use
#: them. ``mtp`` elsewhere in a name means a model that contains its heads.
SIDECARS = ("mtp-", "dspark-", "dflash-", "eagle3-")
#: A quantization in a file name, such as ``Q4_K_M`` or ``UD-IQ2_XXS``.
QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|B?F(?:16|32)|MXFP4\w*)(?![A-Za-z0-9])", re.I
)
_SIZE = re.compile(r"\d+(\.\d+)?[bm]|[ae]\d+(\.\d+)?b")
_DATE = re.compile(r"\d{4}")
_NOT_THE_FAMILY = {
    "gguf", "instruct", "it", "chat", "meta", "qat", "base", "ud", "assistant",
    *(kind.rstrip("-") for kind in SIDECARS),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub; `what` may be empty."""

    repo: str
    what: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name in `text`; None if `text` is something else, such as the path of a GGUF."""
        link, found = _LINK.fullmatch(text), _NAME.fullmatch(text)
        if link:
            return cls(link[1], link[2] or "")
        if found is None or (found[2] is None and text.lower().endswith(".gguf")):
            return None
        return cls(found[1], found[2] or "")

    def __str__(self) -> str:
        return f"{self.repo}:{self.what}" if self.what else self.repo


def is_sidecar(file: str) -> bool:
    """Whether a file is, by its name, a draft of the model beside it."""
    return any(_is_of(kind, file) for kind in SIDECARS)


def sidecars_for(model: str, files: Iterable[str]) -> dict[str, list[str]]:
    """The files of the drafts to fetch with a model, one draft of each kind in the repository.

    The model's quantization is preferred, then the usual ones of drafts.
    """
    found: dict[str, list[str]] = {}
    wanted = [_short(model).removeprefix("UD-"), *PREFERRED["draft"], ""]
    there = files_of_models(files)
    for kind in SIDECARS:
        ours = [one for one in there if _is_of(kind, one[0])]
        fitting = ([one for one in ours if _means(what, one[0])] for what in wanted)
        if best := next((some[0] for some in fitting if some), None):
            found[kind.rstrip("-")] = best
    return found


def family_of(name: str) -> tuple[str, str]:
    """Family and size in the name of a model or its draft: ``("qwen2.5-coder", "7b")``."""
    name = name.rpartition("/")[2].partition(":")[0].lower().removesuffix(".gguf")
    words = [word for word in re.split(r"[-_ ]+", QUANTIZATION.sub("", name)) if word]
    sizes = [word for word in words if _SIZE.fullmatch(word)]
    left_out = {*sizes, *_NOT_THE_FAMILY}
    rest = [word for word in words if word not in left_out and not _DATE.fullmatch(word)]
    return "-".join(rest), "-".join(sizes)


def _is_of(kind: str, file: str) -> bool:
    return PurePosixPath(file).name.lower().startswith(kind)


def files_of_models(files: Iterable[str]) -> list[list[str]]:
    """The files of each complete model and sidecar in a folder."""
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
    """The files of the model that `name` means, out of all `files` in its repository.

    The preferred quantizations depend on the `role`, ``target`` or ``draft``; ``any`` follows the
    target's rules, but accepts a draft if there is nothing else. A UsageError unless exactly one
    model matches.
    """
    everything = files_of_models(files)
    models = [model for model in everything if not is_sidecar(model[0])]
    if role == "draft":  # the first kind if there are several, as in llama.cpp
        kinds = [[one for one in everything if _is_of(kind, one[0])] for kind in SIDECARS]
        wanted = [kind for kind in kinds if any(_means(name.what, one[0]) for one in kind)]
        models = wanted[0] if wanted else models
    elif name.what.lower().endswith(".gguf") or (role == "any" and not models):
        models = everything  # a file of this name, whatever it is called; a draft's repository
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
