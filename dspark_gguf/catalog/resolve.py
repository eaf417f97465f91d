"""From what a user names to models in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dspark_gguf.catalog.demo import Progress, demo_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.errors import UsageError

if TYPE_CHECKING:
    from dspark_gguf.engine.pair import Pair


def resolve(
    model: str | Path | None,
    draft: str | Path | None,
    progress: Progress = lambda line: None,
) -> tuple[Path, Path | None]:
    """Files of the target and the draft; without a model, the demo pair.

    Raises:
        UsageError: a draft without a model, or no demo model installed.

    """
    if model is None:
        if draft is not None:
            raise UsageError("a target for this draft", "none", "name it with -m TARGET.gguf")
        return demo_pair(progress)
    return Path(model), None if draft is None else Path(draft)


def load_pair(
    model: str | Path | None = None,
    draft: str | Path | None = None,
    *,
    target_options: ModelOptions | None = None,
    draft_options: DraftOptions | None = None,
    chat_template: str | None = None,
    progress: Progress = lambda line: None,
) -> Pair:
    """Load a target and a draft GGUF; without arguments, the demo pair.

    Args:
        model: the target's file.
        draft: the draft's file; None with a model: no draft.
        target_options: how llama.cpp loads the target.
        draft_options: the same for the draft.
        chat_template: Jinja text or file, instead of the target's own.
        progress: called with a line when something takes long.

    Raises:
        DSparkError: see ``engine.pair.Pair``.

    """
    from dspark_gguf.engine.pair import Pair

    target_path, draft_path = resolve(model, draft, progress)
    pair = Pair(target_path, draft_path, target_options, draft_options, chat_template)
    if model is None:
        pair.notes.append(
            "this is the tiny demo pair, one model in two quantizations: on a few CPU cores it "
            "shows how speculation works, not a speed-up"
        )
    return pair
