"""``llama_cpp.Llama``, sooner: its own answers, with drafts that are checked in one pass.

Every token is drawn by llama.cpp's own sampler chain from the target's own row, in order, as
``Llama.generate`` does it; a draft only decides how many rows one pass computes (`match`
acceptance). So penalties, grammars, mirostat, seeds and custom processors mean what they mean
there, and the same seed says the same.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any, TypeAlias

import llama_cpp
import numpy as np

from dspark_gguf.config import DraftOptions, Sampling, Speculation
from dspark_gguf.draft import Cascade, Drafter, LookupDrafter, ModelDrafter, NoDrafter
from dspark_gguf.draft.grammar import Choices, FittingGreedy, fitting, forced
from dspark_gguf.engine import library
from dspark_gguf.engine.chain import Chain
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.grammar import Grammar, Pieces
from dspark_gguf.engine.llama import GrowingTokenizer, LlamaCache, RecordedRows, row_of
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.timing import quick_profile
from dspark_gguf.engine.vocabulary import Vocabulary, require_same_tokens
from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.hub import downloaded
from dspark_gguf.learned import Learned, learned_path
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.sampling import Sampler, margin
from dspark_gguf.schedule import Fixed, StoppingRule, make_stopping_rule

#: What may be given as `draft_model`.
DraftModel: TypeAlias = "str | Path | llama_cpp.Llama | Drafter | None"

_PROFILE_SECONDS = 2.0


class DSparkLlama(llama_cpp.Llama):  # type: ignore[misc]
    """A ``Llama`` that speculates.

    Args:
        model_path: the target.
        draft_model: a path of a GGUF with the target's vocabulary, a loaded ``Llama`` that nobody
            else uses meanwhile, a `Drafter`, or None: what the conversation already said is copied.
        draft_options: how a path is loaded.
        speculation: when to draft, and how much; lossless acceptance only.
        options: as for ``Llama``.

    Raises:
        UsageError: a `draft_model` that is none of these, or acceptance that changes the output.
        PairError: a draft with another vocabulary.
        ModelError: a draft that cannot take tokens back.

    """

    n_tokens: int
    tokenizer_: Any
    _draft_context: Context | None = None
    _learned: Learned | None = None
    _looking: ModelDrafter | None = None
    _recorded: RecordedRows | None = None
    _records = False
    _all_logits = False
    _greedy: Sampler

    def __init__(
        self,
        model_path: str,
        *,
        draft_model: DraftModel = None,
        draft_options: DraftOptions | None = None,
        speculation: Speculation | None = None,
        **options: Any,
    ) -> None:
        self.speculation = speculation or Speculation()
        if not self.speculation.lossless:
            raise UsageError(
                "acceptance ratio, match or auto",
                self.speculation.acceptance,
                "the drop-in is lossless: use dspark_gguf.Decoder for the other rules",
            )
        super().__init__(model_path, **options)
        if type(self.tokenizer_) is llama_cpp.LlamaTokenizer:
            self.tokenizer_ = GrowingTokenizer(self)
        self._asked = {
            "draft_model": draft_model, "draft_options": draft_options, "speculation": speculation,
        }  # fmt: skip
        self.drafter: Drafter = NoDrafter()
        self.stopping_rule: StoppingRule = Fixed(0)
        generates = not (options.get("vocab_only") or options.get("embedding"))
        if not generates:
            return
        self._cache = LlamaCache(self)
        if self._cache.can_trim and self.speculation.mode != "off":
            try:
                self._prepare(draft_model, draft_options or DraftOptions())
            except Exception:
                self.close()
                raise

    def _prepare(self, draft: DraftModel, options: DraftOptions) -> None:
        cache: Context | LlamaCache | None = None
        lookup = LookupDrafter(self._cache.vocabulary)
        if draft is None:
            self.drafter = lookup
        elif isinstance(draft, str | Path | llama_cpp.Llama):
            if isinstance(draft, llama_cpp.Llama):
                cache = self._borrowed(draft)
            else:
                cache = self._draft_context = self._loaded(draft, options)
            self._greedy = Sampler(Sampling(temperature=0), self._cache.vocabulary.end_tokens)
            looking = ModelDrafter(cache, self._greedy, self._cache.vocabulary, margin)
            both = self.speculation.stopping_rule == "optimal"
            self.drafter = Cascade(lookup, looking) if both else looking
            self._looking = looking
        elif hasattr(draft, "propose"):
            self.drafter = draft
        else:
            raise UsageError(
                "draft_model: a path, a Llama, a Drafter or None", type(draft).__name__,
                "give one of these",
            )  # fmt: skip
        path = learned_path(self._facts(draft)) if self.speculation.learn else None
        self._learned = learned = Learned(path)
        limit = self.speculation.most_copies
        if not learned.costs.covers(limit, looks=cache is not None):
            quick_profile(self._cache, cache, learned.costs, _PROFILE_SECONDS, limit)
            self.reset()
        copies = isinstance(self.drafter, LookupDrafter | Cascade)
        self.stopping_rule = make_stopping_rule(
            self.speculation,
            learned.costs,
            learned.calibration("model", "match", 0.0),
            copies=learned.calibration("lookup", "match", 0.0) if copies else None,
            looks=0 if isinstance(self.drafter, LookupDrafter) else None,
        )

    def _facts(self, draft: DraftModel) -> dict[str, Any]:
        """Everything that costs and confidences depend on."""
        paths = [self.model_path, draft.model_path if isinstance(draft, llama_cpp.Llama) else draft]
        files = [Path(path) for path in paths if isinstance(path, str | Path)]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        own = {key: repr(value) for key, value in super().__getstate__().items()}
        options = self._asked["draft_options"]
        return {"files": stats, "own": own, "draft": repr(options), "machine": library.machine()}

    def _loaded(self, path: str | Path, options: DraftOptions) -> Context:
        draft = Model(path, options)
        try:
            self._require_same_tokens(draft.vocabulary, draft.path.name)
            if not draft.has_trimmable_cache:
                raise _cannot_trim(draft.path.name)
            n_ctx = options.n_ctx or min(self.n_ctx(), draft.n_ctx_train)
            return Context(draft, n_ctx, 1, Event())
        except Exception:
            draft.close()
            raise

    def _borrowed(self, draft: llama_cpp.Llama) -> LlamaCache:
        cache, name = LlamaCache(draft), Path(draft.model_path).name
        self._require_same_tokens(cache.vocabulary, name)
        if not cache.can_trim:
            raise _cannot_trim(name)
        return cache

    def _require_same_tokens(self, theirs: Vocabulary, name: str) -> None:
        require_same_tokens(self._cache.vocabulary, theirs, Path(self.model_path).name, name)

    def _create_completion(self, *args: Any, **options: Any) -> Iterator[Any]:
        """As in ``Llama``; log-probabilities need no table of the whole context."""
        if options.get("logprobs") is None or self._logits_all or args:
            yield from super()._create_completion(*args, **options)
            return
        if options.get("echo"):
            raise UsageError(
                "logits_all=True for log-probabilities of the prompt (echo)", "logits_all=False",
                "make the Llama with logits_all=True, or do not echo",
            )  # fmt: skip
        answer = super()._create_completion(**options)
        # Asked for before `generate` begins, where it is taken back.
        self._records = True
        try:
            yield from answer
        finally:
            self._records, self._recorded = False, None

    @property
    def _scores(self) -> Any:
        return self._recorded.rows if self._recorded else super()._scores

    @property
    def _logits_all(self) -> bool:
        return self._records or self._all_logits

    @_logits_all.setter
    def _logits_all(self, value: bool) -> None:
        self._all_logits = value

    def generate(  # noqa: D102 - as in Llama
        self, tokens: Sequence[int], *args: Any, **options: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        recording, self._records = self._records, False
        self._recorded = RecordedRows(self._n_vocab, len(tokens) - 1) if recording else None
        plain = isinstance(self.stopping_rule, Fixed) and not self.stopping_rule.length
        if plain and not recording:
            yield from super().generate(tokens, *args, **options)
            return
        names = ("top_k", "top_p", "min_p", "typical_p", "temp", "repeat_penalty", "reset")
        options = dict(zip(names, args, strict=False)) | options
        yield from self._rounds(list(tokens), **options)

    def _rounds(
        self,
        tokens: list[int],
        *,
        reset: bool = True,
        stopping_criteria: llama_cpp.StoppingCriteriaList | None = None,
        **sampling: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        self._mirostat_mu = ctypes.c_float(2.0 * sampling.get("mirostat_tau", 5.0))
        chain = Chain(self, self._pieces if sampling.get("grammar") else None, **sampling)
        self._sampler, grammar = chain.sampler, chain.grammar
        if reset:
            self._cache.keep(tokens[:-1])
            tokens = tokens[self.n_tokens :]
        said = [*self._input_ids.tolist(), *tokens]
        self.drafter.restart(said[:-1], np.random.default_rng(0))
        self._constrain(grammar)
        draft, plain, learns = NO_DRAFT, True, False
        while True:
            started = perf_counter()
            if not plain:
                draft, learns = self._draft(said, grammar)
            drafted = perf_counter()
            before = self.n_tokens
            if len(draft):
                self._cache.decode([*tokens, *draft.tokens])
            else:
                self.eval(tokens)
            decoded = perf_counter()
            rows, sent = len(draft) + 1, None
            fresh: list[int] = []
            pending = len(tokens) - 1
            for k in range(rows):
                # What a processor or a caller sees between two tokens: what was committed.
                self.n_tokens = before + pending + k + 1
                if self._recorded:
                    self._recorded.append(row_of(self, k - rows))
                few = grammar.few() if grammar else None
                token = chain.draw(k - rows)
                if few is not None:
                    self._choices.observe(fresh[-1] if fresh else said[-1], few, token)
                if stopping_criteria is not None and stopping_criteria(
                    self._input_ids, self._scores[-1, :]
                ):
                    return
                fresh.append(token)
                sent = yield token
                if sent or k == len(draft) or token != draft.tokens[k]:
                    break
            pairs = enumerate(zip(draft.tokens, fresh, strict=False))
            accepted = next((k for k, (ours, theirs) in pairs if ours != theirs), len(draft))
            if self.n_tokens < before + len(tokens) + len(draft):
                self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
                self._requires_eval = True
            tokens = [fresh[-1], *(sent or ())]
            said += [*fresh, *(sent or ())]
            self.drafter.trim(len(said) - 1 - len(sent or ()))
            if learns and not sent:
                self._learn(draft, fresh, accepted, (started, drafted, decoded))
            draft, plain, learns = NO_DRAFT, bool(sent), False

    def _constrain(self, grammar: Grammar | None) -> None:
        """Let the draft model say what fits only."""
        if self._looking is not None:
            self._looking.sampler = FittingGreedy(grammar) if grammar else self._greedy

    def _draft(self, said: list[int], grammar: Grammar | None) -> tuple[Draft, bool]:
        """What to verify after `said`, and whether there is something to learn from it."""
        room = min(self.n_ctx() - len(said), self.n_batch) - 1
        if grammar is None:
            return self._proposed(said, room), True
        ahead = grammar.fork()
        head = forced(ahead, said[-1], self._choices, room)
        if head:
            return Draft(tuple(head)), False
        if self._looking is not None and isinstance(self._looking.sampler, FittingGreedy):
            self._looking.sampler.committed = len(said)
        draft = self._proposed(said, room)
        fits = draft.tokens[: fitting(ahead, draft.tokens)]
        tail = forced(ahead, [*said, *fits][-1], self._choices, room - len(fits))
        tokens = (*fits, *tail)
        return (draft, True) if tokens == draft.tokens else (Draft(tokens), False)

    def _proposed(self, said: list[int], room: int) -> Draft:
        plan = self.stopping_rule.plan(room, self.drafter.behind(said))
        return self.drafter.propose(said, plan) if plan.length else NO_DRAFT

    def _learn(self, draft: Draft, fresh: list[int], accepted: int, times: Sequence[float]) -> None:
        started, drafted, decoded = times
        round = Round.of(
            draft,
            fresh,
            accepted=accepted,
            seconds=decoded - started,
            draft_seconds=drafted - started,
            target_seconds=decoded - drafted,
        )
        self.stopping_rule.observe(round)
        self.drafter.observe(round)

    @cached_property
    def _pieces(self) -> Pieces:
        vocabulary = self._cache.vocabulary
        ends = frozenset(vocabulary.end_tokens)
        return Pieces(partial(vocabulary.piece, special=True), self._n_vocab, ends)

    @cached_property
    def _choices(self) -> Choices:
        return Choices(self._pieces.text, self._pieces.end_tokens)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str,
        *,
        draft_repo_id: str | None = None,
        draft_filename: str | None = None,
        additional_files: Sequence[str] = (),
        local_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> DSparkLlama:
        """A target, and a draft or none, from a model hub, through huggingface_hub and its cache.

        Args:
            repo_id: of the target, such as ``org/name-GGUF``.
            filename: of the target, or a glob pattern that one file matches.
            draft_repo_id: of the draft; without it, the target's.
            draft_filename: of the draft, or a pattern; None: no draft model.
            additional_files: more of the target's repository, such as the shards of a split file.
            local_dir: where to put the files, instead of the cache.
            cache_dir: where the cache is.
            options: as for the class.

        Raises:
            UsageError: no file or several match.

        """
        if draft_repo_id is not None and draft_filename is None:
            raise UsageError("draft_filename with draft_repo_id", "none", 'such as "*Q8_0.gguf"')
        places = {"local_dir": local_dir, "cache_dir": cache_dir}
        for name in additional_files:
            downloaded(repo_id, name, **places)
        path = downloaded(repo_id, filename, **places)
        if draft_filename is not None:
            options["draft_model"] = downloaded(draft_repo_id or repo_id, draft_filename, **places)
        return cls(path, **options)

    @classmethod
    def with_draft(cls, draft_model: DraftModel = None, **ours: Any) -> type[DSparkLlama]:
        """A class that always drafts this way, for code that makes its own ``Llama``.

        Args:
            draft_model: as for this class.
            ours: ``draft_options``, ``speculation``.

        """
        fixed = {"draft_model": draft_model, **ours}

        class WithDraft(cls):  # type: ignore[misc, valid-type]
            def __init__(self, model_path: str, **options: Any) -> None:
                super().__init__(model_path, **{**options, **fixed})

        return WithDraft

    def __getstate__(self) -> dict[str, Any]:
        """What makes the same again, for pickling."""
        return {**super().__getstate__(), **self._asked}

    def close(self) -> None:
        """Free both models."""
        if self._learned is not None:
            with suppress(OSError):  # a folder that cannot be written to is no reason to fail
                self._learned.save()
            self._learned = None
        if self._draft_context is not None:
            self._draft_context.close()
            self._draft_context.model.close()
            self._draft_context = None
        if hasattr(self, "_stack"):  # else: refused before anything was loaded
            super().close()


def _cannot_trim(name: str) -> ModelError:
    return ModelError(
        "a draft whose cache takes tokens back", f"{name}, which is recurrent", "use another draft"
    )
