"""A target and a draft, loaded and known to fit each other."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from types import TracebackType

from dspark_gguf.config import MAX_DRAFT, DraftOptions, ModelOptions, Speculation
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.model import Model, readable_gguf
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.engine.vocabulary import Vocabulary, require_same_tokens

DEFAULT_CONTEXT = 8192
_MIB = 1024**2


class Pair:
    """Two models and their caches.

    The draft is loaded with the first decoder that drafts: with speculation off it costs nothing.

    Args:
        target: GGUF of the model whose answers are wanted.
        draft: GGUF of a small model with the same vocabulary, or None.
        target_options: how to load the target.
        draft_options: how to load the draft.
        chat_template: Jinja text or a file with it, instead of the one in the target's file.

    Raises:
        UsageError: no such file, or an unknown device.
        ModelError: a file llama.cpp cannot generate text with.
        PairError: vocabularies that differ (when the draft is loaded).
        ResourceError: not enough memory.

    Attributes:
        interrupt: set it to end work on a long prompt or an answer at the next pass.
        notes: what the user should know, one sentence each.

    """

    def __init__(
        self,
        target: str | Path,
        draft: str | Path | None = None,
        target_options: ModelOptions | None = None,
        draft_options: DraftOptions | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.interrupt = Event()
        self.notes: list[str] = []
        self._draft_path = None if draft is None else readable_gguf(draft)
        self._draft_options = draft_options or DraftOptions()
        self._draft_cache: Context | None = None
        self._off = "no draft model" if draft is None else ""
        self.draft: Model | None = None
        self.target = Model(target, target_options or ModelOptions())
        self.vocabulary: Vocabulary = self.target.vocabulary
        self.template = ChatTemplate(self.target, chat_template)
        self.notes += self.target.notes + self.template.notes
        self.target_cache = self._context(self.target, self._target_context_size())
        if not self.target_cache.can_trim:
            self._off = _cannot_trim(self.target)

    def draft_cache(self) -> Context | None:
        """The draft's cache, loaded at the first call; None where there is nothing to draft with.

        Raises:
            PairError: its vocabulary differs from the target's.

        """
        if self._draft_cache is None and self.can_speculate and self._draft_path is not None:
            self._load_draft(self._draft_path)
        return self._draft_cache

    @property
    def can_speculate(self) -> bool:
        """Whether there is a draft, and caches that can take back what is rejected."""
        return not self._off

    def summary(self, speculation: Speculation) -> str:
        """One line: where both models sit, weights + cache in MiB, whether we speculate."""
        parts = [f"target {_placed(self.target_cache)}"]
        if self._draft_cache is not None:
            parts.append(f"draft {_placed(self._draft_cache)}")
        return "; ".join([*parts, self._speculation_state(speculation)])

    def close(self) -> None:
        """Free both models."""
        for cache in (self._draft_cache, self.target_cache):
            if cache is not None:
                cache.close()
                cache.model.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load_draft(self, path: Path) -> None:
        draft = Model(path, self._draft_options)
        try:
            require_same_tokens(self.vocabulary, draft.vocabulary, self.target.path.name, path.name)
            if not draft.has_trimmable_cache:
                self._off = _cannot_trim(draft)
                draft.close()
                return
            cache = self._context(draft, self._draft_context_size(draft), max_rows=1)
        except Exception:
            draft.close()
            raise
        self.draft, self._draft_cache = draft, cache
        self.notes += draft.notes
        if draft.size > self.target.size:
            self.notes.append(
                f"the draft ({draft.size / _MIB:.0f} MiB) is larger than the target "
                f"({self.target.size / _MIB:.0f} MiB): drafting will cost more than it saves; "
                "are -m and -d swapped?"
            )

    def _context(self, model: Model, n_ctx: int, max_rows: int = MAX_DRAFT + 1) -> Context:
        return Context(model, n_ctx, max_rows, self.interrupt)

    def _target_context_size(self) -> int:
        train, wanted = self.target.n_ctx_train, self.target.options.n_ctx
        scaled = self.target.options.rope_scaling not in (None, "none")
        if wanted > train and not scaled:
            self.notes.append(
                f"n_ctx {wanted} is beyond the {train} tokens that {self.target.path.name} was "
                "trained for: answers may fall apart there; --rope-scaling can stretch it"
            )
        return wanted or min(DEFAULT_CONTEXT, train)

    def _draft_context_size(self, draft: Model) -> int:
        size = self._draft_options.n_ctx or min(self.target_cache.n_ctx, draft.n_ctx_train)
        if size < self.target_cache.n_ctx:
            self.notes.append(
                f"the draft's context is {size} tokens, the target's {self.target_cache.n_ctx}: "
                "beyond that, plain decoding"
            )
        return size

    def _speculation_state(self, speculation: Speculation) -> str:
        if self._off:
            return f"speculation off: {self._off}"
        if speculation.mode == "off":
            return "speculation off: plain decoding, as asked"
        sure = speculation.draft_min_prob
        bound = f" at {sure:.0%} or more" if sure else ""
        kind = "lossless" if speculation.lossless else "LOSSY, changes the output"
        return (
            f"speculation on: {speculation.acceptance} ({kind}), "
            f"up to {speculation.draft_max} drafts{bound}"
        )


def _cannot_trim(model: Model) -> str:
    return f"the cache of {model.name} ({model.architecture}) cannot take tokens back"


def _placed(cache: Context) -> str:
    model = cache.model
    return (
        f"{model.name} on {model.place}, {model.size / _MIB:.0f} + {cache.cache_bytes / _MIB:.0f} "
        f"MiB for {cache.n_ctx} tokens"
    )
