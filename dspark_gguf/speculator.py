"""What drafts for a ``Llama``: the drafter, when it is asked, and what its rounds teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import Any, TypeAlias

import numpy as np

from dspark_gguf.config import DraftOptions, Sampling, Speculation
from dspark_gguf.draft import Cascade, Drafter, LookupDrafter, ModelDrafter, Store
from dspark_gguf.draft.grammar import Choices, FittingGreedy, Share, fitting, forced, paying
from dspark_gguf.engine import library
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.grammar import Grammar, Pieces
from dspark_gguf.engine.llama import Llama, LlamaCache
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.timing import quick_profile
from dspark_gguf.engine.vocabulary import Vocabulary, require_same_tokens
from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.learned import Learned, learned_path
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.sampling import Sampler, margin, top_probability
from dspark_gguf.schedule import make_stopping_rule

#: What may be given as `draft_model`.
DraftModel: TypeAlias = "str | Path | Llama | Drafter | None"

_PROFILE_SECONDS = 2.0


class Speculator:
    """Drafts for one ``Llama``.

    Args:
        cache: of the target.
        draft: see `DSparkLlama`.
        options: how a path is loaded.
        speculation: when to draft, and how much.
        facts: what costs depend on besides the files.

    Raises:
        UsageError: a `draft` of another type, or settings that do not go with it.
        PairError: a draft with another vocabulary.
        ModelError: a draft that cannot take tokens back.

    """

    def __init__(
        self,
        cache: LlamaCache,
        draft: DraftModel,
        options: DraftOptions | None,
        speculation: Speculation,
        facts: Mapping[str, Any],
    ) -> None:
        require_honoured(draft, options, speculation)
        self._cache = cache
        self._own: Context | None = None
        self._looking: ModelDrafter | None = None
        self._learned: Learned | None = None
        self._greedy = Sampler(Sampling(temperature=0), cache.vocabulary.end_tokens)
        try:
            self._prepare(draft, options or DraftOptions(), speculation, facts)
        except Exception:
            self.close()
            raise

    def _prepare(
        self,
        draft: DraftModel,
        options: DraftOptions,
        speculation: Speculation,
        facts: Mapping[str, Any],
    ) -> None:
        target = self._cache
        draft_cache = self._draft_cache(draft, options)
        self.drafter = self._drafter(draft, draft_cache, speculation)
        self._rule = speculation.stopping_rule
        self._whole = Share(0.5, 2.0)  # how often all of a draft is right
        path = None
        if speculation.learn:
            files = [target.llama.model_path, draft]
            path = learned_path({**facts, "files": _stats(files), "machine": library.machine()})
        self._learned = learned = Learned(path)
        by_hand = self._rule in ("fixed", "threshold")
        self._costs = None if by_hand else learned.costs
        limit = speculation.most_copies
        if not learned.costs.covers(limit, looks=draft_cache is not None):
            quick_profile(target, draft_cache, learned.costs, _PROFILE_SECONDS, limit)
            target.llama.reset()
        copies = isinstance(self.drafter, LookupDrafter | Cascade)
        self.stopping_rule = make_stopping_rule(
            speculation,
            learned.costs,
            learned.calibration("model", "match", 0.0),
            copies=learned.calibration("lookup", "match", 0.0) if copies else None,
            looks=0 if isinstance(self.drafter, LookupDrafter) else None,
        )

    def _draft_cache(self, draft: DraftModel, options: DraftOptions) -> Context | LlamaCache | None:
        if isinstance(draft, Llama):
            return self._borrowed(draft)
        if isinstance(draft, str | Path):
            self._own = self._loaded(draft, options)
        return self._own

    def _drafter(
        self,
        draft: DraftModel,
        cache: Context | LlamaCache | None,
        speculation: Speculation,
    ) -> Drafter:
        vocabulary = self._cache.vocabulary
        if cache is None and draft is not None:
            return _own_drafter(draft)
        store = speculation.lookup_store
        texts = None
        if store is not None:
            texts = Store.load(Path(store), vocabulary.fingerprint, vocabulary.n_tokens)
        lookup = LookupDrafter(vocabulary, texts)
        if cache is None:
            return lookup
        score = top_probability if speculation.stopping_rule == "threshold" else margin
        self._looking = ModelDrafter(cache, self._greedy, vocabulary, score)
        both = speculation.drafter == "auto" and speculation.stopping_rule == "optimal"
        return Cascade(lookup, self._looking) if both else self._looking

    def _loaded(self, path: str | Path, options: DraftOptions) -> Context:
        draft = Model(path, options)
        try:
            self._require_same_tokens(draft.vocabulary, draft.path.name)
            n_ctx = options.n_ctx or min(self._cache.n_ctx, draft.n_ctx_train)
            return Context(draft, n_ctx, 1, Event())
        except Exception:
            draft.close()
            raise

    def _borrowed(self, draft: Llama) -> LlamaCache:
        cache, name = LlamaCache(draft), Path(draft.model_path).name
        self._require_same_tokens(cache.vocabulary, name)
        if not cache.can_trim:
            raise _cannot_trim(name)
        return cache

    def _require_same_tokens(self, theirs: Vocabulary, name: str) -> None:
        ours = Path(self._cache.llama.model_path).name
        require_same_tokens(self._cache.vocabulary, theirs, ours, name)

    @cached_property
    def pieces(self) -> Pieces:
        """Of every token: what grammars read."""
        vocabulary = self._cache.vocabulary
        ends = frozenset(vocabulary.end_tokens)
        return Pieces(partial(vocabulary.piece, special=True), self._cache.n_tokens, ends)

    @cached_property
    def choices(self) -> Choices:
        """What was said where a grammar left a choice of few."""
        return Choices(self.pieces.text, self.pieces.end_tokens)

    @property
    def outlook(self) -> str:
        """What it will do, in one line."""
        copying = isinstance(self.drafter, LookupDrafter)
        if copying or isinstance(self.drafter, Cascade):
            who = "the conversation" + ("" if copying else " and the draft model")
        else:
            who = "the draft model" if self._looking else type(self.drafter).__name__
        return f"drafts from {who}, as many as the rule {self._rule} admits; the same output"

    def restart(self, tokens: Sequence[int], grammar: Grammar | None) -> None:
        """Begin an answer behind `tokens`; a draft model then says what fits only."""
        self.drafter.restart(tokens, np.random.default_rng(0))
        if self._looking is not None:
            self._looking.sampler = FittingGreedy(grammar) if grammar else self._greedy

    def draft(self, said: list[int], room: int, grammar: Grammar | None) -> tuple[Draft, bool]:
        """At most `room` tokens to verify after `said`, and whether the round teaches anything."""
        if grammar is None:
            return self._proposed(said, room), True
        head, sure = forced(grammar.fork(), said[-1], self.choices, room)
        count = self._paying(sure)
        if count:
            return Draft(tuple(head[:count])), False
        if self._looking is not None and isinstance(self._looking.sampler, FittingGreedy):
            self._looking.sampler.committed = len(said)
        draft, ahead = self._proposed(said, room), grammar.fork()
        fits = draft.tokens[: fitting(ahead, draft.tokens)]
        if fits and fits[-1] not in self.choices.end_tokens:
            tail, sure = forced(ahead, fits[-1], self.choices, room - len(fits))
            count = self._paying(sure, len(fits), self._whole.value)
            fits = (*fits, *tail[:count])
        return (draft, True) if fits == draft.tokens else (Draft(fits), False)

    def _paying(self, sure: Sequence[float], before: int = 0, survival: float = 1.0) -> int:
        """How many of the tokens that a grammar suggests to verify; by hand: all of them."""
        if not sure or self._costs is None:
            return len(sure)
        return paying(sure, self._costs.target_seconds, before, survival)

    def _proposed(self, said: list[int], room: int) -> Draft:
        plan = self.stopping_rule.plan(room, self.drafter.behind(said))
        return self.drafter.propose(said, plan) if plan.length else NO_DRAFT

    def trim(self, length: int) -> None:
        """Forget drafts behind the first `length` tokens."""
        self.drafter.trim(length)

    def observe(self, round: Round, learns: bool) -> None:
        """Learn from a round: costs, and from one that `learns` says so of, what its draft was."""
        if not learns:
            if self._costs is not None:
                self._costs.observe(round)
            return
        self.stopping_rule.observe(round)
        self.drafter.observe(round)
        if round.drafted:
            self._whole.add(round.accepted == round.drafted)

    def close(self) -> None:
        """Keep what was learned, free what was loaded."""
        if self._learned is not None:
            with suppress(OSError):  # a folder that cannot be written to is no reason to fail
                self._learned.save()
            self._learned = None
        if self._own is not None:
            self._own.close()
            self._own.model.close()
            self._own = None


def require_honoured(
    draft: DraftModel, options: DraftOptions | None, speculation: Speculation
) -> None:
    """Refuse what a `DSparkLlama` would have to ignore.

    Raises:
        UsageError: naming it.

    """
    path, model = isinstance(draft, str | Path), isinstance(draft, str | Path | Llama)
    if speculation.acceptance not in ("auto", "match"):
        raise UsageError(
            "acceptance match or auto: every token is llama.cpp's own draw",
            speculation.acceptance,
            "use dspark_gguf.Decoder for the other rules",
        )
    for given, fits, what in (
        (options is not None, path, "draft_options"),
        (speculation.drafter == "model", model, "drafter model"),
        (speculation.drafter == "lookup", draft is None, "drafter lookup"),
        (speculation.lookup_store is not None, draft is None or model, "a lookup_store"),
    ):
        if given and not fits:
            raise UsageError(
                f"a draft_model that goes with {what}", _kind(draft), "leave one of both out"
            )


def _kind(draft: DraftModel) -> str:
    return "none" if draft is None else type(draft).__name__


def _own_drafter(draft: Any) -> Drafter:
    if not hasattr(draft, "propose"):
        raise UsageError(
            "draft_model: a path, a Llama, a Drafter or None", type(draft).__name__,
            "give one of these",
        )  # fmt: skip
    return draft  # type: ignore[no-any-return]


def _stats(files: Sequence[DraftModel]) -> list[tuple[str, int, int]]:
    """What a file's name alone does not tell."""
    named = [file.model_path if isinstance(file, Llama) else file for file in files]
    paths = [Path(file) for file in named if isinstance(file, str | Path)]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _cannot_trim(name: str) -> ModelError:
    return ModelError(
        "a draft whose cache takes tokens back", f"{name}, which is recurrent", "use another draft"
    )
