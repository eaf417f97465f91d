"""From the names that users give to files, and to models in memory.

A model is named by a file, by a pair of ``models.txt``, by ``org/repo:file-or-quant`` on the hub,
or by ``ollama:NAME``. What is not on this machine is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_gguf import hub
from dspark_gguf.catalog.demo import FROM_PACKAGE, Progress, demo_file, demo_pair
from dspark_gguf.catalog.local import OLLAMA, ollama_path
from dspark_gguf.catalog.pairs import OWN_HEADS, known_pair, similar_names
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import DSparkError, ModelError, ResourceError, UsageError
from dspark_gguf.naming import HubName
from dspark_gguf.progress import ProgressCallback, no_progress

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair

#: What to write for "no draft".
NO_DRAFT = "none"


def resolve(
    model: str | Path | None,
    draft: str | Path | None,
    progress: Progress = lambda line: None,
    found: Progress | None = None,
) -> tuple[Path, Path | None]:
    """Files of the target and the draft, downloaded where they are not on this machine.

    `model` may be a pair, which also names the draft; None is the demo pair. The draft `mtp` means
    the prediction heads in the target's own file, so both paths are that file. `progress` is called
    with a line when something takes long. Without a draft, this machine is searched for one unless
    the draft is `none`, and `found` is called with a line about it; without `found`, no search.

    Raises:
        UsageError: an unknown name, a draft without a target, or no demo model installed.
        ModelError: no prediction heads that can be used.
        DSparkError: see `hub`.
    """
    if model is None:
        if draft not in (None, NO_DRAFT):
            raise UsageError(f"the draft {draft} has no target", "Name it with -m TARGET.gguf.")
        target, demo_draft = demo_pair(progress)
        return target, demo_draft if draft is None else None
    if draft is None and (pair := known_pair(model)):
        draft = OWN_HEADS if pair.draft == OWN_HEADS else model
    if draft == OWN_HEADS and not os.path.lexists(OWN_HEADS):
        [target] = locate([(model, "target")], progress)
        _require_heads(target)
        return target, target
    if draft is not None and draft != NO_DRAFT:
        target, its_draft = locate([(model, "target"), (draft, "draft")], progress)
        return target, its_draft
    if draft == NO_DRAFT or found is None:
        return locate([(model, "target")], progress)[0], None

    from dspark_gguf.catalog.found import find_draft

    [target] = locate([(model, "target")], progress, with_sidecar=True)
    draft_path, line = find_draft(target)
    if line:
        found(line)
    return target, draft_path


def _require_heads(target: Path) -> None:
    from dspark_gguf.engine.gguf import read_header
    from dspark_gguf.engine.heads import why_no_heads

    if why := why_no_heads(read_header(target)):
        raise ModelError(why, "Use another draft, or none.")


def locate(
    models: Sequence[tuple[str | Path, str]],
    progress: Progress = lambda line: None,
    newest: bool = False,
    with_sidecar: bool = False,
) -> list[Path]:
    """The files of models; all are found before the first is downloaded.

    Each model has a name and a role, ``target``, ``draft`` or ``any`` (see `naming.chosen`), which
    also says which model of a pair is meant. With `newest`, the hub is asked even about models in
    the cache; `with_sidecar` also downloads the draft beside a target. Errors are as for `resolve`.
    """
    places = [_place(name, role, progress, newest) for name, role in models]
    if with_sidecar:
        places = [_with_sidecar(place) for place in places]
    hub.require_room([place for place in places if isinstance(place, hub.Download)])
    return [
        hub.fetch(place, progress) if isinstance(place, hub.Download) else place for place in places
    ]


def _place(name: str | Path, role: str, progress: Progress, newest: bool) -> Path | hub.Download:
    pair = known_pair(name)
    if pair is None:
        return _place_of_model(name, role, progress, newest)
    wanted = pair.model(role)
    if not (wanted.startswith(FROM_PACKAGE) or HubName.parse(wanted)):
        instead = f"-m {name} -d DRAFT.gguf" if role == "draft" else f"-m TARGET.gguf -d {name}"
        raise UsageError(
            f"for {name} the list has only the name of the {role}, {wanted}, and no repository",
            f"Download it by hand and name the file: {instead}.",
        )
    place = _place_of_model(wanted, role, progress, newest)
    if pair.status == "unverified" and isinstance(place, hub.Download):
        progress(f"note: {name} is unverified: nobody has checked that {wanted} is its {role}")
    return place


def _with_sidecar(place: Path | hub.Download) -> Path | hub.Download:
    """The same download, with the fastest of the drafts beside the model."""
    if not isinstance(place, hub.Download) or not place.sidecars:
        return place
    from dspark_gguf.catalog.found import estimated_speed

    size = sum(place.files.values())
    speeds = {
        kind: estimated_speed(kind, sum(files.values()), size)
        for kind, files in place.sidecars.items()
    }
    best = max(speeds, key=lambda kind: speeds[kind])
    return replace(place, files=place.files | place.sidecars[best])


def _place_of_model(
    name: str | Path, role: str, progress: Progress, newest: bool
) -> Path | hub.Download:
    text, path = str(name), Path(os.path.expanduser(name))
    if not text.strip():
        raise UsageError("the name of a model is empty", "Name a file, or leave the option out.")
    if isinstance(name, Path) or os.path.lexists(path):
        return path
    if text.startswith(FROM_PACKAGE):
        return demo_file(text.rpartition(":")[2], progress)
    if text.startswith(OLLAMA):
        if found := ollama_path(text.removeprefix(OLLAMA)):
            return found
        hint = "See `dspark-gguf models --local`, or `ollama pull` it."
        raise UsageError(f"Ollama has no model {text.removeprefix(OLLAMA)!r} here", hint)
    if on_hub := HubName.parse(text):
        there = None if newest and not hub.is_offline() else hub.find_cached(on_hub, role)
        return there or hub.find(on_hub, role)
    if "://" in text:
        hint = "Download the file and give its path; of huggingface.co, org/repo:quant is enough."
        raise UsageError(f"the link {text} cannot be followed", hint)
    if "/" in text or "\\" in text or text.lower().endswith(".gguf"):
        return path  # whoever opens it says that there is nothing
    raise UsageError(
        f"{text!r} is not a GGUF file, a pair of `dspark-gguf models`{similar_names(text)} or "
        "org/repo:quant",
        "Correct the name; `dspark-gguf models --local` shows what is on this machine.",
    )


def pull(name: str, progress: Progress = lambda line: None) -> list[Path]:
    """Download a pair's two models, or one model of the hub; the newest, when online.

    A model brings the draft beside it; a draft that fits is the last of the paths. The last line
    for `progress` says how to use them. What is no GGUF after all is a `ModelError`.
    """
    from dspark_gguf.engine.gguf import readable_gguf

    pair, use = known_pair(name), "use it: dspark-gguf chat -m"
    if pair and pair.draft != OWN_HEADS:
        paths = locate([(name, "target"), (name, "draft")], progress, newest=True)
        paths = [readable_gguf(path) for path in paths]
        progress(f"{use} {name}")
        return paths
    if not pair and HubName.parse(name) is None:
        raise UsageError(
            f"{name!r} is neither a pair of `dspark-gguf models`{similar_names(name)} nor "
            "org/repo:quant",
            "Correct the name.",
        )
    from dspark_gguf.catalog.found import find_draft

    wanted = [(name, "any")]
    [path] = locate(wanted, progress, newest=True, with_sidecar=True)
    path = readable_gguf(path)
    draft, line = find_draft(path)
    if line:
        progress(line)
    if _is_sidecar(path):
        progress(f"{use} TARGET -d {name}")
    elif other := _other_kind(path):
        progress(f"note: this is {other}: it generates no text")
    else:
        progress(f"{use} {name}" + ("" if draft else " -d DRAFT"))
    return [path, draft] if draft and draft != path else [path]


def _other_kind(path: Path) -> str:
    from dspark_gguf.engine.gguf import read_header

    with suppress(DSparkError):  # whoever uses it says what is wrong with it
        return read_header(path).other_kind
    return ""


def _is_sidecar(path: Path) -> bool:
    from dspark_gguf.engine.gguf import read_header
    from dspark_gguf.engine.heads import kind_of

    with suppress(DSparkError):  # whoever uses it says what is wrong with it
        return kind_of(read_header(path)) != "model"
    return False


def load_pair(
    model: str | Path | None = None,
    draft: str | Path | None = None,
    *,
    target_options: ModelOptions | None = None,
    draft_options: DraftOptions | None = None,
    chat_template: str | None = None,
    conversations: int = 1,
    progress: Progress = lambda line: None,
    on_progress: ProgressCallback = no_progress,
) -> Pair:
    """Load a target and a draft GGUF; without arguments, the demo pair.

    Models are named as for `resolve`. Without a draft, one on this machine is used if any fits, and
    the pair's `found` says which. `chat_template` is Jinja text, or a file, that replaces the
    target's own. A `Batcher` can answer up to `conversations` in one pass. `progress` is called
    with a line about downloads, `on_progress` with each long task and the seconds it should take.

    Errors are as for `resolve` and ``engine.pair.Pair``.
    """
    from dspark_gguf.engine.pair import Pair

    found: list[str] = []
    target_path, draft_path = resolve(model, draft, progress, found.append)
    options = target_options, draft_options, chat_template, conversations, on_progress
    try:
        pair = Pair(target_path, draft_path, *options)
    except (ModelError, ResourceError) as error:
        if not found or draft_path != target_path:
            raise
        pair = Pair(target_path, None, *options)  # its own heads give way
        pair.notes.append(f"{error.problem}: its prediction heads are not used")
    if model in (None, "demo"):
        found.append(
            "this is the tiny demo pair, one model in two quantizations: on a few CPU cores its "
            "draft gains nothing, copying from the conversation does"
        )
    pair.found = "; ".join(found)
    return pair
