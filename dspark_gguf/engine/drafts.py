"""Open a draft of any kind for a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import llama_cpp

from dspark_gguf.config import DraftOptions
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.compatible import difference, require_same_tokens, require_text
from dspark_gguf.engine.context import open_context
from dspark_gguf.engine.dflash import BlockDraft, TargetDraft
from dspark_gguf.engine.gguf import read_header, readable_gguf
from dspark_gguf.engine.heads import HeadDraft, is_own_draft, target_draft
from dspark_gguf.engine.memory import rows_of
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.mtp import AssistantCache, EagleCache, HeadsCache
from dspark_gguf.engine.sequence import SequenceCache, open_caches
from dspark_gguf.engine.states import StateCache
from dspark_gguf.engine.token_map import token_map
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import PairError
from dspark_gguf.progress import ProgressCallback, no_progress


def open_drafts(
    path: str | Path,
    options: DraftOptions,
    targets: Sequence[SequenceCache],
    vocabulary: Vocabulary,
    target_path: str | Path,
    interrupt: Event | None = None,
    target: Model | None = None,
    on_progress: ProgressCallback = no_progress,
) -> list[SequenceCache]:
    """Load a small language model, or a draft made for the target.

    The target's own prediction heads are loaded already. Returns a cache for each of the `targets`,
    which are the sequences of `target`.

    Raises:
        UsageError: no such file.
        ModelError: a file that cannot draft.
        PairError: another vocabulary, or made for another target.
    """
    path, interrupt = readable_gguf(path), interrupt or Event()
    header, target_header = read_header(path), read_header(target_path)
    made_for = target_draft(header, target_header)
    if made_for is not None:
        made_for.require_target(target_header)
    if target is not None and is_own_draft(target_header, path):
        draft = target.with_heads(options)
    else:
        draft = Model(
            path,
            options,
            isinstance(made_for, HeadDraft),
            on_progress=on_progress,
            interrupt=interrupt,
        )
    try:
        names = Path(target_path).name, path.name
        is_foreign = made_for is None and bool(difference(vocabulary, draft.vocabulary))
        if is_foreign:
            require_text(vocabulary, draft.vocabulary, *names)
        else:
            require_same_tokens(vocabulary, draft.vocabulary, *names)
        n_ctx, n_seq = options.n_ctx or min(targets[0].n_ctx, draft.n_ctx_train), len(targets)
        if made_for is not None:
            return _open_followers(draft, made_for, targets, n_ctx, interrupt)
        if n_seq > 1 and not options.n_ctx:
            n_ctx = targets[0].context.n_ctx  # shared, like the target's
        caches = open_caches(draft, n_ctx, 1, interrupt, is_draft=True, n_seq=n_seq)
        table = token_map(vocabulary, draft.vocabulary) if is_foreign else None
        for cache in caches:
            if table is not None:
                cache.kind, cache.token_map = "mapped", table
            elif is_foreign:
                cache.kind = "foreign"
        return caches
    except Exception:
        draft.close()
        raise


def _open_followers(
    model: Model,
    draft: TargetDraft,
    targets: Sequence[SequenceCache],
    n_ctx: int,
    interrupt: Event,
) -> list[SequenceCache]:
    """The caches of a draft that reads the target's hidden states, in one new context."""
    n_seq, context, heads = len(targets), targets[0].context, draft.heads
    if not isinstance(draft, BlockDraft):
        model = model.with_options(swa_full=True)
    if isinstance(draft, HeadDraft):
        _require_width(model, draft, targets[0])
    cells = draft.cells(n_ctx, context.n_ctx, n_seq)
    rows = rows_of(draft.rows, n_seq)
    other = None if heads else context  # heads of the same architecture need nothing from it
    room = open_context(model, cells, rows, interrupt, features_of=other, heads=heads, n_seq=n_seq)
    made = _class_of(draft)
    return [made(model, draft, target, n_ctx, room) for target in targets]


def _require_width(model: Model, draft: HeadDraft, target: SequenceCache) -> None:
    """Raise a `PairError` if the states have another width than the header says."""
    pointers = model.pointer, llama_cpp.llama_get_model(target.pointer)
    widths = [llama_cpp.llama_model_n_embd_out(one) for one in pointers]
    if widths != [draft.width] * 2:
        raise PairError(
            f"llama.cpp reads states of {widths[0]} numbers in {draft.header.path.name} and gives "
            f"{widths[1]}, not {draft.width}",
            "Use another draft, or none; report it with the model's name.",
        )


def _class_of(draft: TargetDraft) -> Any:
    if isinstance(draft, HeadDraft):
        many = HeadsCache if draft.heads > 1 else StateCache
        return AssistantCache if draft.is_assistant else many
    return BlockDraftCache if isinstance(draft, BlockDraft) else EagleCache
