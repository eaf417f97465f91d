"""The arguments of `DSparkLlama`: its options, and its draft."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import llama_cpp

from dspark_gguf.catalog.resolve import NO_DRAFT, locate, resolve
from dspark_gguf.config import DraftOptions, ModelOptions, Speculation
from dspark_gguf.draft import Drafter
from dspark_gguf.dropin.llama_cache import borrow
from dspark_gguf.engine.compatible import require_same_tokens
from dspark_gguf.engine.drafts import open_drafts
from dspark_gguf.engine.facts import llama_facts, model_facts
from dspark_gguf.engine.fitting import free_for, open_what_fits
from dspark_gguf.engine.gguf import read_header, readable_gguf
from dspark_gguf.engine.heads import is_own_draft, kind_of, overrides_for, require_model
from dspark_gguf.engine.llama import LlamaDraftModel, LlamaPromptLookupDecoding
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.progress import ProgressCallback

#: What may be given as `draft_model`.
DraftModel: TypeAlias = "str | Path | llama_cpp.Llama | Drafter | None"
_OURS = {"draft_model", "draft", "draft_options", "speculation", "extra_buffers"}
_OPTIONS = _OURS | set(inspect.signature(llama_cpp.Llama.__init__).parameters)
#: Names this similar are taken for typing errors (``difflib``).
_TYPO = 0.85


def require_known(options: Iterable[str]) -> None:
    """Refuse misspelled options; frameworks also pass names that are no options at all."""
    for name in options:
        close = get_close_matches(name, _OPTIONS, 1, _TYPO)
        if close and name not in _OPTIONS:
            raise UsageError(f"Llama has no option {name!r}", f"Write {close[0]}.")


def given_draft(draft_model: Any, draft: Any) -> tuple[DraftModel, bool]:
    """The draft that was given under either name, and whether to search for one."""
    if draft_model is not None and draft is not None:
        raise UsageError("draft and draft_model are the same", "Give one of the two.")
    given = draft if draft_model is None else draft_model
    if given == NO_DRAFT or isinstance(given, LlamaPromptLookupDecoding):
        return None, False  # prompt lookup needs no draft
    return given, True


def require_supported(
    draft: DraftModel, options: DraftOptions | None, speculation: Speculation
) -> None:
    """Refuse settings that a `DSparkLlama` would have to ignore, with a UsageError."""
    ModelOptions.given(options)
    if speculation.acceptance != "match":
        raise UsageError(
            f"acceptance {speculation.acceptance} does not go with DSparkLlama, whose tokens are "
            "all llama.cpp's own draw",
            "Use match, or dspark_gguf.Decoder for the other rules.",
        )
    path = isinstance(draft, str | Path)
    model = path or isinstance(draft, llama_cpp.Llama)
    for given, fits, what in (
        (options is not None, path, "draft_options"),
        (speculation.drafter == "lookup", draft is None, "drafter lookup"),
        (speculation.drafter != "auto", draft is None or model, f"drafter {speculation.drafter}"),
        (speculation.lookup_store is not None, draft is None or model, "a lookup_store"),
    ):
        if given and not fits:
            clash = f"does not go with a draft_model of type {type(draft).__name__}"
            why = "needs a draft_model" if draft is None else clash
            raise UsageError(f"{what} {why}", "Leave one of the two out.")


def first_only(say: Callable[[str], object]) -> ProgressCallback:
    """Says only the first of what takes long."""
    left = iter([say])

    def on_progress(text: str, seconds: float = 0.0) -> None:
        for once in itertools.islice(left, 1):
            once(f"DSparkLlama: {text}, about {seconds:.0f} s")

    return on_progress


def files_of(
    model: str, draft: DraftModel, searches: bool, say: Callable[[str], object]
) -> tuple[Path, DraftModel, bool]:
    """The target's file, the draft, and whether a search found that draft.

    If it `searches`, then as on the command line; `say` is called with a line about the draft.
    """
    if not isinstance(model, str | Path):
        problem = f"model_path cannot be of type {type(model).__name__}"
        raise UsageError(problem, "Give a file, or a name from the hub.")
    if not (draft is None or isinstance(draft, str | Path)):
        [target] = locate([(model, "target")], say)
        return target, draft, False
    lines: list[str] = []
    target, path = resolve(model, draft, say, lines.append if searches else None)
    for line in lines:
        say(f"DSparkLlama: {line}")
    return target, path, path is not None and bool(lines)


def target_options(path: Path, draft: DraftModel) -> dict[str, Any]:
    """Options that a target needs for this draft, or to load at all; a ModelError if it is a draft.

    If there is no GGUF, ``Llama`` reports it.
    """
    try:
        header = read_header(path)
    except DSparkError:
        return {}
    require_model(header)
    return {"own_heads": _has_own(path, draft), "kv_overrides": overrides_for(header) or None}


def _has_own(target: str | Path, draft: DraftModel) -> bool:
    """Whether the draft is the target's own prediction heads: the same file."""
    if not isinstance(draft, str | Path):
        return False
    return is_own_draft(read_header(target), Path(draft))


def open_cache_of(
    draft: DraftModel,
    options: DraftOptions,
    target: SequenceCache,
    vocabulary: Vocabulary,
    target_path: str,
    pointer: Any,
    say: Callable[[str], object] | None = None,
) -> SequenceCache | None:
    """The cache of a draft model; None if the draft is not a model, or has no room in memory.

    `pointer` is llama.cpp's pointer to the target, for its own prediction heads. Where memory is
    short, `say` is called, or a warning given, with what of the draft is left out. A PairError says
    that the vocabularies differ.
    """
    if isinstance(draft, str | Path):

        def load(options: DraftOptions) -> list[SequenceCache]:
            own = _has_own(target_path, draft) and Model(target_path, options, True, pointer)
            names = draft, options, [target], vocabulary, target_path
            return open_drafts(*names, target=own or None)

        path, header = readable_gguf(draft), read_header(target_path)
        found, _, note = open_what_fits(
            path, options, header, target.n_ctx, free_for(options), load
        )
        if note:
            (say or partial(warnings.warn, stacklevel=4))(note)
        return found[0] if found else None
    if isinstance(draft, llama_cpp.Llama):
        _require_model(draft)
        theirs = Vocabulary(draft._model.model, owner=draft)
        names = os.path.basename(target_path), os.path.basename(draft.model_path)
        require_same_tokens(vocabulary, theirs, *names)
        return borrow(draft, is_draft=True)
    return None


def open_found(
    draft: DraftModel,
    on_gpu: bool,
    say: Callable[[str], object],
    target: tuple[SequenceCache, Vocabulary, str, Any],
) -> SequenceCache | None:
    """As `open_cache_of`, for a draft that nobody named: it is left out if it cannot be used.

    It stays off the GPU if the target does.
    """
    options = DraftOptions() if on_gpu else DraftOptions(n_gpu_layers="none")
    try:
        return open_cache_of(draft, options, *target, say=say)
    except DSparkError as error:
        say(f"DSparkLlama: {error.problem}: the draft that was found is not used")
        return None


def _require_model(draft: llama_cpp.Llama) -> None:
    """Refuse a ``Llama`` of a file that llama.cpp cannot run as a model by itself."""
    kind = "model"
    with suppress(DSparkError):  # its file may be gone
        kind = kind_of(read_header(draft.model_path))
    if kind != "model":
        problem = f"{os.path.basename(draft.model_path)} ({kind}) is no model by itself"
        raise UsageError(problem, "Give its path instead of a Llama.")


def own_drafter(draft: Any) -> Drafter | None:
    """The caller's own drafter, if `draft` is one; a `UsageError` if it cannot draft."""
    if draft is None or isinstance(draft, str | Path | llama_cpp.Llama):
        return None
    if isinstance(draft, LlamaDraftModel):
        raise UsageError(
            f"draft_model cannot be a LlamaDraftModel such as {type(draft).__name__}",
            "Give the path of the model that it drafts with, or make it a dspark_gguf.draft.Drafter"
            " with `name` and `propose`.",
        )
    missing = [name for name in ("propose", "name", "is_free", "most") if not hasattr(draft, name)]
    if missing:
        raise UsageError(
            f"draft_model cannot be of type {type(draft).__name__}",
            "Give a path, a Llama, a Drafter or None "
            f"(a Drafter has {missing[0]}: see dspark_gguf.draft.Drafter).",
        )
    return draft  # type: ignore[no-any-return]


def facts_of(draft: DraftModel, cache: SequenceCache | None) -> Any:
    """What the costs of such a draft depend on."""
    if isinstance(draft, llama_cpp.Llama):
        return llama_facts(draft)
    if cache is not None:
        return model_facts(cache)
    return None if draft is None else getattr(draft, "name", None)
