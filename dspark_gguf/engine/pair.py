"""A target and a draft, loaded and known to fit each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from threading import Event
from time import perf_counter
from types import TracebackType
from typing import Any

from dspark_gguf.config import MAX_DRAFT, DraftOptions, ModelOptions, Speculation
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.block import BlockDraftCache
from dspark_gguf.engine.dflash import ARCHITECTURE, BlockDraft
from dspark_gguf.engine.files import readable_gguf
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import SequenceCache, open_cache
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.engine.timing import measured
from dspark_gguf.engine.vocabulary import Vocabulary, require_same_tokens
from dspark_gguf.errors import ModelError
from dspark_gguf.learned import Learned, learned_path

DEFAULT_CONTEXT = 8192
_MIB = 1024**2
#: The first profile of a pair takes this long, or this share of the time to load the target.
_PROFILE_SECONDS, _PROFILE_SHARE = 2.0, 0.05


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
        left_out: those of them that tell what a trial ended badly for.

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
        self._draft_cache: SequenceCache | None = None
        self.draft: Model | None = None
        self._learned: Learned | None = None
        started = perf_counter()
        self.target = Model(target, target_options or ModelOptions())
        self._load_seconds = perf_counter() - started
        if self.target.architecture == ARCHITECTURE:
            self.target.close()
            raise ModelError(
                "a target that generates text by itself",
                f"{self.target.path.name}, a block draft",
                "give it with -d, and with -m the target that it was made for",
            )
        self.vocabulary: Vocabulary = self.target.vocabulary
        self.template = ChatTemplate(self.target, chat_template)
        self.notes += self.target.notes + self.template.notes
        self.left_out = self._left_out()
        self.notes += self.left_out
        n_ctx = self._target_context_size()
        self.target_cache = open_cache(self.target, n_ctx, MAX_DRAFT + 1, self.interrupt)

    def draft_cache(self) -> SequenceCache | None:
        """The draft's cache, loaded at the first call; None where there is no draft.

        Raises:
            PairError: its vocabulary differs from the target's.

        """
        if self._draft_cache is None and self._draft_path is not None:
            self._load_draft(self._draft_path)
        return self._draft_cache

    @property
    def draft_kind(self) -> str:
        """What drafts from the draft: ``model``, ``block``, or nothing without one."""
        cache = self.draft_cache()
        return "" if cache is None else cache.kind

    @property
    def caches(self) -> dict[str, SequenceCache]:
        """The target's cache, and the draft's if it is loaded."""
        caches = {"target": self.target_cache, "draft": self._draft_cache}
        return {role: cache for role, cache in caches.items() if cache is not None}

    def learned(self, speculation: Speculation, say: Callable[[str], object] = str) -> Learned:
        """What is known of this pair on this machine; measured first where nothing is.

        Measuring takes about two seconds, once, and leaves both caches empty.

        Args:
            speculation: whether to remember it between runs, and how much may be drafted.
            say: called with a line when it has to be measured.

        """
        draft = None if speculation.drafter == "lookup" else self.draft_cache()
        if self._learned is None:
            path = learned_path(self._facts()) if speculation.learn else None
            self._learned = Learned(path)
            if self._learned.note:
                self.notes.append(self._learned.note)
        budget = max(_PROFILE_SECONDS, _PROFILE_SHARE * self._load_seconds)
        return measured(self._learned, self.target_cache, draft, speculation, budget, say)

    def remember(self) -> None:
        """Keep what was learned for the next run, if it is to be kept."""
        if self._learned is not None:
            # A folder that cannot be written to is no reason to fail at the end of a chat.
            with suppress(OSError):
                self._learned.save()

    def apart(self) -> Pair:
        """The same models and caches; what decoders of it learn is known to no other, nor kept.

        It begins with the costs that are known, and nothing else. Only the original is closed.
        """
        other = copy(self)
        if self._learned is not None:
            other._learned = Learned()
            other._learned.costs.restore(self._learned.costs.as_dict())
        return other

    def _facts(self) -> dict[str, Any]:
        """Everything that costs and confidences depend on."""
        models = {}
        for role, cache in (("target", self.target_cache), ("draft", self._draft_cache)):
            if cache is not None:
                file = cache.model.path.stat()
                models[role] = {
                    "file": [cache.model.path.name, file.st_size, file.st_mtime_ns],
                    "options": cache.model.options.model_dump(mode="json"),
                    "n_ctx": cache.n_ctx,
                    "place": cache.model.place,
                    "extra_buffers": cache.model.extra_buffers,
                }
        return {**models, "machine": library.machine()}

    def summary(self, speculation: Speculation) -> str:
        """One line: where both models sit, weights + cache in MiB, whether we speculate."""
        parts = [f"target {_placed(self.target_cache)}"]
        if self._draft_cache is not None:
            cache = self._draft_cache
            kind = f" ({cache.draft.kind})" if isinstance(cache, BlockDraftCache) else ""
            parts.append(f"draft{kind} {_placed(cache)}")
        return "; ".join([*parts, self._speculation_state(speculation)])

    def close(self) -> None:
        """Keep what was learned, and free both models."""
        self.remember()
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

    @property
    def most_drafts(self) -> int:
        """Draft tokens that one round can have."""
        cache = self._draft_cache
        most = cache.most_drafts if cache is not None else MAX_DRAFT
        return min(most, self.target_cache.max_rows - 1)

    def _load_draft(self, path: Path) -> None:
        cache = open_draft(
            path,
            self._draft_options,
            self.target_cache,
            self.vocabulary,
            self.target.path,
            self.interrupt,
        )
        self.draft, self._draft_cache = cache.model, cache
        draft = cache.model
        self.notes += draft.notes
        if cache.n_ctx < self.target_cache.n_ctx:
            self.notes.append(
                f"the draft's context is {cache.n_ctx} tokens, the target's "
                f"{self.target_cache.n_ctx}: beyond that, plain decoding"
            )
        if draft.size > self.target.size:
            self.notes.append(
                f"the draft ({draft.size / _MIB:.0f} MiB) is larger than the target "
                f"({self.target.size / _MIB:.0f} MiB): drafting will cost more than it saves; "
                "are -m and -d swapped?"
            )

    def _left_out(self) -> list[str]:
        options = self.target.options
        on_gpu = options.n_gpu_layers is None and library.can_offload()
        return trial.notes(options.extra_buffers, on_gpu)

    def _target_context_size(self) -> int:
        train, wanted = self.target.n_ctx_train, self.target.options.n_ctx
        scaled = self.target.options.rope_scaling not in (None, "none")
        if wanted > train and not scaled:
            self.notes.append(
                f"n_ctx {wanted} is beyond the {train} tokens that {self.target.path.name} was "
                "trained for: answers may fall apart there; --rope-scaling can stretch it"
            )
        return wanted or min(DEFAULT_CONTEXT, train)

    def _speculation_state(self, speculation: Speculation) -> str:
        if speculation.mode == "off":
            return "speculation off: plain decoding, as asked"
        kind = "lossless" if speculation.lossless else "LOSSY, changes the output"
        if speculation.acceptance != "auto":
            kind = f"{speculation.acceptance} ({kind})"
        rule = speculation.stopping_rule
        if self._draft_cache is None or speculation.drafter == "lookup":
            most = min(speculation.most_copies, self.most_drafts)
            how = f"up to {most} tokens copied from the conversation"
        else:
            how = f"up to {min(speculation.most_looks, self.most_drafts)} drafts"
        if rule == "threshold":
            how += f" at {speculation.min_probability:.0%} or more"
        elif rule == "optimal":
            how += ", as many as pay here"
        return f"speculation {speculation.mode}: {kind}, {how}"


def open_draft(
    path: str | Path,
    options: DraftOptions,
    target: SequenceCache,
    vocabulary: Vocabulary,
    target_path: str | Path,
    interrupt: Event | None = None,
) -> SequenceCache:
    """The cache of a draft model of whatever kind, loaded.

    Args:
        path: a small language model, or a draft made for the target (DSpark, DFlash).
        options: how to load it.
        target: the target's cache.
        vocabulary: the target's.
        target_path: the target's file.
        interrupt: see `open_cache`.

    Raises:
        UsageError: no such file.
        ModelError: a file that cannot draft.
        PairError: another vocabulary, or a draft made for another target.

    """
    path = readable_gguf(path)
    block = BlockDraft.of(read_header(path))
    if block is not None:
        block.require_target(read_header(Path(target_path)))
    draft, interrupt = Model(path, options), interrupt or Event()
    try:
        require_same_tokens(vocabulary, draft.vocabulary, Path(target_path).name, path.name)
        n_ctx = options.n_ctx or min(target.n_ctx, draft.n_ctx_train)
        if block is None:
            return open_cache(draft, n_ctx, 1, interrupt, is_draft=True)
        return BlockDraftCache(draft, block, target, n_ctx, interrupt)
    except Exception:
        draft.close()
        raise


def _placed(cache: SequenceCache) -> str:
    model = cache.model
    return (
        f"{model.name} on {model.place}, {model.size / _MIB:.0f} + {cache.cache_bytes / _MIB:.0f} "
        f"MiB for {cache.n_ctx} tokens"
    )
