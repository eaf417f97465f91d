"""From what a user names to files, and to models in memory.

A model is named by a file, by a pair of ``models.txt``, by ``org/repo:file-or-quant`` on the hub,
or by ``ollama:NAME``. What is not on this machine is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dspark_gguf import hub
from dspark_gguf.catalog.demo import Progress, demo_file, demo_pair, source_model
from dspark_gguf.catalog.local import OLLAMA, ollama_path
from dspark_gguf.catalog.pairs import known_pair, similar_names
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import UsageError
from dspark_gguf.naming import HubName

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair

_FROM_PACKAGE = "package:"


def resolve(
    model: str | Path | None, draft: str | Path | None, progress: Progress = lambda line: None
) -> tuple[Path, Path | None]:
    """Files of the target and the draft, downloaded where they are not on this machine.

    `model` may be a pair, which names the draft too; None is the demo pair. `progress` is called
    with a line when something takes long.

    Raises:
        UsageError: an unknown name, a draft without a target, or no demo model installed.
        DSparkError: see `hub`.

    """
    if model is None:
        if draft is not None:
            raise UsageError(f"the draft {draft} has no target", "Name it with -m TARGET.gguf.")
        return demo_pair(progress)
    if draft is None and known_pair(model):
        draft = model
    if draft is None:
        return locate([(model, "target")], progress)[0], None
    target_path, draft_path = locate([(model, "target"), (draft, "draft")], progress)
    return target_path, draft_path


def locate(
    models: Sequence[tuple[str | Path, str]],
    progress: Progress = lambda line: None,
    newest: bool = False,
) -> list[Path]:
    """The files of models; all are found before the first is downloaded.

    Each model has a name and a role, ``target`` or ``draft``: of a pair, which of its two. With
    `newest`, the hub is asked even for what is in the cache. Errors are as for `resolve`.
    """
    places = [_place(name, role, progress, newest) for name, role in models]
    hub.require_room([place for place in places if isinstance(place, hub.Download)])
    return [
        hub.fetch(place, progress) if isinstance(place, hub.Download) else place for place in places
    ]


def _place(name: str | Path, role: str, progress: Progress, newest: bool) -> Path | hub.Download:
    pair = known_pair(name)
    if pair is None:
        return _place_of_model(name, role, progress, newest)
    wanted = pair.model(role)
    if not (wanted.startswith(_FROM_PACKAGE) or HubName.parse(wanted)):
        instead = f"-m {name} -d DRAFT.gguf" if role == "draft" else f"-m TARGET.gguf -d {name}"
        raise UsageError(
            f"for {name} the list has only the name of the {role}, {wanted}, and no repository",
            f"Download it by hand and name the file: {instead}.",
        )
    place = _place_of_model(wanted, role, progress, newest)
    if pair.status == "unverified" and isinstance(place, hub.Download):
        progress(f"note: {name} is unverified: nobody has checked that {wanted} is its {role}")
    return place


def _place_of_model(
    name: str | Path, role: str, progress: Progress, newest: bool
) -> Path | hub.Download:
    text, path = str(name), Path(os.path.expanduser(name))
    if isinstance(name, Path) or os.path.lexists(path):
        return path
    if text.startswith(_FROM_PACKAGE):
        return demo_file(text.rpartition(":")[2], progress)
    if text.startswith(OLLAMA):
        if found := ollama_path(text.removeprefix(OLLAMA)):
            return found
        hint = "See `dspark-gguf models --local`, or `ollama pull` it."
        raise UsageError(f"Ollama has no model {text.removeprefix(OLLAMA)} here", hint)
    if on_hub := HubName.parse(text):
        there = None if newest and not hub.is_offline() else hub.find_cached(on_hub, role)
        return there or hub.find(on_hub, role)
    if "/" in text or "\\" in text or text.lower().endswith(".gguf"):
        return path  # whoever opens it says that there is nothing
    raise UsageError(
        f"{text!r} is no GGUF file, no pair of `dspark-gguf models`{similar_names(text)} and not "
        "org/repo:quant",
        "Correct the name; `dspark-gguf models --local` shows what is on this machine.",
    )


def pull(name: str, progress: Progress = lambda line: None) -> list[Path]:
    """Download a pair's two models, or one model of the hub; the newest, when online."""
    if known_pair(name):
        return locate([(name, "target"), (name, "draft")], progress, newest=True)
    if HubName.parse(name) is None:
        raise UsageError(
            f"{name!r} is no pair of `dspark-gguf models`{similar_names(name)} and not "
            "org/repo:quant",
            "Correct the name.",
        )
    return locate([(name, "target")], progress, newest=True)


def find_local(name: str, role: str) -> Path | None:
    """The file of a pair's model if it is on this machine, without network."""
    if name.startswith(_FROM_PACKAGE):
        with suppress(UsageError):
            return source_model()
    on_hub = HubName.parse(name)
    return hub.find_cached(on_hub, role) if on_hub else None


def load_pair(
    model: str | Path | None = None,
    draft: str | Path | None = None,
    *,
    target_options: ModelOptions | None = None,
    draft_options: DraftOptions | None = None,
    chat_template: str | None = None,
    conversations: int = 1,
    progress: Progress = lambda line: None,
) -> Pair:
    """Load a target and a draft GGUF; without arguments, the demo pair.

    Models are named as for `resolve`. `chat_template` is Jinja text or a file, instead of the
    target's own. A `Batcher` can answer as many `conversations` in one pass.

    Raises:
        DSparkError: see `resolve` and ``engine.pair.Pair``.

    """
    from dspark_gguf.engine.pair import Pair

    target_path, draft_path = resolve(model, draft, progress)
    pair = Pair(
        target_path, draft_path, target_options, draft_options, chat_template, conversations
    )
    if model in (None, "demo"):
        pair.notes.append(
            "this is the tiny demo pair, one model in two quantizations: on a few CPU cores its "
            "draft gains nothing, copying from the conversation does"
        )
    return pair
