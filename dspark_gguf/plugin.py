"""``llama_cpp.Llama``, sooner: its own answers, with drafts that are checked in one pass.

Every token is drawn by llama.cpp's own sampler chain from the target's own row, in order, as
``Llama.generate`` does it; a draft only decides how many rows one pass computes (`match`
acceptance). So penalties, grammars, mirostat, seeds and custom processors mean what they mean
there, and the same seed says the same.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, TypeAlias

import llama_cpp
import numpy as np

from dspark_gguf.assemble import Parts, assemble, new_choices
from dspark_gguf.catalog.resolve import located, resolve
from dspark_gguf.config import DraftOptions, Sampling, Speculation
from dspark_gguf.decoder import Generation
from dspark_gguf.draft import AnswerGrammar, Choices, Drafter, NoDrafter, within
from dspark_gguf.ending import Endless
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.chain import Chain, ChainVerifier
from dspark_gguf.engine.grammar import Grammar, require_grammar
from dspark_gguf.engine.llama import GrowingTokenizer, RecordedRows, SafeLlama, borrowed
from dspark_gguf.engine.pair import open_draft
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.timing import measured
from dspark_gguf.engine.vocabulary import Vocabulary, require_same_tokens
from dspark_gguf.errors import UsageError
from dspark_gguf.hub import downloaded
from dspark_gguf.learned import Learned, learned_path
from dspark_gguf.schedule import Fixed, StoppingRule
from dspark_gguf.verify import match

#: What may be given as `draft_model`.
DraftModel: TypeAlias = "str | Path | llama_cpp.Llama | Drafter | None"
#: Of the first profile of a pair.
_PROFILE_SECONDS = 2.0
_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class DSparkLlama(SafeLlama):
    """A ``Llama`` that speculates.

    Args:
        model_path: the target: a file, ``org/repo:quant`` on the hub, or a pair of ``models.txt``,
            which brings its draft.
        draft_model: a GGUF with the target's vocabulary or a draft made for the target (DSpark,
            DFlash), named likewise, a loaded ``Llama`` that nobody else uses meanwhile, a
            `Drafter`, or None: what the conversation already said is copied.
        draft_options: how a path is loaded.
        speculation: when to draft, and how much; acceptance is `match`.
        options: as for ``Llama``; ``extra_buffers`` (on, off) overrules what was tried here.

    Raises:
        UsageError: a `draft_model` that is none of these, or settings that do not go with it.
        PairError: a draft with another vocabulary.
        ModelError: a draft that is no model.
        EngineError: this build of llama.cpp cannot run on this machine.

    """

    n_tokens: int
    tokenizer_: Any
    _learned: Learned | None = None
    _draft: SequenceCache | None = None
    _recorded: RecordedRows | None = None
    _committed: Sequence[int] = ()
    _records = False
    _all_logits = False

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
        require_honoured(draft_model, draft_options, self.speculation)
        progress = partial(print, file=sys.stderr) if options.get("verbose", True) else str
        if draft_model is None or isinstance(draft_model, str | Path):
            target, draft_model = resolve(model_path, draft_model, progress)
        else:
            [target] = located([(model_path, "target")], progress)
        super().__init__(str(target), **options)
        if type(self.tokenizer_) is llama_cpp.LlamaTokenizer:
            self.tokenizer_ = GrowingTokenizer(self)
        self._asked = {
            "draft_model": draft_model, "draft_options": draft_options, "speculation": speculation,
        }  # fmt: skip
        self._parts = Parts(NoDrafter(), Fixed(0), match)
        if options.get("vocab_only"):
            return
        # By a proxy: it is freed with the last reference to it, as a `Llama` is.
        self._cache = borrowed(weakref.proxy(self))
        self._vocabulary = Vocabulary(self._model.model, owner=self._model)
        if options.get("embedding"):
            return
        try:
            self._assemble(draft_model, draft_options)
        except Exception:
            self.close()
            raise
        if self.verbose:
            lines = [f"DSparkLlama: {self.outlook}", *(f"note: {note}" for note in trial.notes())]
            print("\n".join(lines), file=sys.stderr)  # noqa: T201 - as Llama does

    def _assemble(self, draft: DraftModel, options: DraftOptions | None) -> None:
        facts = {
            "own": _told(super().__getstate__()), "draft": repr(options),
            "extra_buffers": self.extra_buffers,
        }  # fmt: skip
        if self.speculation.mode != "off":
            self._draft = self._draft_cache(draft, options or DraftOptions())
        is_ours = draft is None or self._draft is not None
        self._parts = assemble(
            self._cache,
            lambda: self._draft,
            self._vocabulary,
            # The draft's best guess is what llama.cpp's own draw follows most often.
            Sampling(temperature=0.0),
            self.speculation.model_copy(update={"acceptance": "match"}),
            partial(self._measured, {**facts, "files": _stats([self.model_path, draft])}),
            None if is_ours else _own_drafter(draft),
        )

    def _draft_cache(self, draft: DraftModel, options: DraftOptions) -> SequenceCache | None:
        name = os.path.basename(self.model_path)
        if isinstance(draft, str | Path):
            return open_draft(draft, options, self._cache, self._vocabulary, self.model_path)
        if isinstance(draft, llama_cpp.Llama):
            theirs = Vocabulary(draft._model.model, owner=draft)
            require_same_tokens(self._vocabulary, theirs, name, os.path.basename(draft.model_path))
            return borrowed(draft, is_draft=True)
        return None

    def _measured(self, facts: Mapping[str, Any]) -> Learned:
        path = None
        if self.speculation.learn:
            path = learned_path({**facts, "machine": library.machine()})
        self._learned = Learned(path)
        return measured(self._learned, self._cache, self._draft, self.speculation, _PROFILE_SECONDS)

    @property
    def outlook(self) -> str:
        """What speculation will do here, in one line."""
        if self.speculation.mode == "off":
            return "plain decoding, as asked"
        drafter, rule = self._parts.drafter, self.speculation.stopping_rule
        return f"drafts from {drafter.about}, as many as the rule {rule} admits; the same output"

    @property
    def drafter(self) -> Drafter:
        """What proposes."""
        return self._parts.drafter

    @property
    def stopping_rule(self) -> StoppingRule:
        """What decides how much."""
        return self._parts.scheduler

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

    @property
    def input_ids(self) -> Any:
        """Ids of the tokens it has read; room for `n_ctx()`, which llama.cpp has rounded up."""
        return self._ids

    @input_ids.setter
    def input_ids(self, ids: Any) -> None:
        self._ids = np.pad(ids, (0, max(self._n_ctx - len(ids), 0)))

    @property
    def scores(self) -> Any:
        """The table of logits: of the whole context if they are asked for."""
        return self._table

    @scores.setter
    def scores(self, table: Any) -> None:
        rows, width = table.shape
        more = self._all_logits and rows < self._n_ctx
        self._table = np.ndarray((self._n_ctx, width), table.dtype) if more else table

    def _init_sampler(self, *args: Any, **options: Any) -> Any:
        if options.get("grammar") is not None:
            require_grammar(self._model.vocab, options["grammar"])
        return super()._init_sampler(*args, **options)

    def eval(self, tokens: Sequence[int]) -> None:  # noqa: D102 - as in Llama
        self._catch_up(whole=True)
        super().eval(tokens)

    def save_state(self) -> Any:  # noqa: D102 - as in Llama
        self._catch_up(whole=True)
        # Its table of logits is taken along, not the rows for log-probabilities.
        recorded, self._recorded = self._recorded, None
        try:
            return super().save_state()
        finally:
            self._recorded = recorded

    def _catch_up(self, whole: bool = False) -> None:
        """Notice what others did since the last pass.

        With `whole`, what a rejected draft took along is read: others go by `n_tokens`. That is
        needed behind an answer of ours alone, and where single tokens cannot be taken back.
        """
        cache = getattr(self, "_cache", None)
        if cache is None or (whole and (not self._committed or cache.rollback == "removal")):
            return
        said = self._input_ids.tolist()
        cache.sync(said, self._committed)
        if whole:
            self._committed = ()
            if cache.length < len(said):
                cache.decode(said[cache.length :], 0)

    @wraps(llama_cpp.Llama.generate)
    def generate(  # noqa: D102 - as in Llama
        self, *args: Any, **options: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        asked = _GENERATE.bind(self, *args, **options).arguments
        del asked["self"]
        return self._generated(list(asked.pop("tokens")), asked)

    def _generated(
        self, tokens: list[int], asked: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        if not tokens and (asked.get("reset", True) or not self.n_tokens):
            raise UsageError("a prompt of a token at least", "none", "begin it with token_bos()")
        recording, self._records = self._records, False
        self._recorded = RecordedRows(self._n_vocab, len(tokens) - 1) if recording else None
        if self.speculation.mode == "off" and not recording and asked.get("grammar") is None:
            yield from super().generate(tokens, **asked)
            return
        self._catch_up()
        if not asked.pop("reset", True):
            tokens = [*self._input_ids.tolist(), *tokens]
        yield from self._said(tokens, **asked)

    def _said(
        self, prompt: list[int], *, stopping_criteria: Any = None, **sampling: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens behind `prompt`, as ``Llama`` draws them; `sampling` as for its chain."""
        run = self._run(prompt, stopping_criteria, sampling)
        first = len(prompt)
        while run.finish_reason is None:
            self._committed = run.tokens
            step = run.propose()
            place = len(run.tokens)
            round = run.commit(self._cache.decode(step.tokens, step.n_rows))
            for k, token in enumerate(round.tokens):
                # What the caller sees between two tokens: what was said until then.
                self.n_tokens = place + k
                sent = yield token
                if not sent:
                    continue
                drawn = run.tokens[first : place + k + 1]
                said = [*run.tokens[: place + k + 1], *sent]
                if k + 1 == len(round.tokens):
                    run = run.moved(said, np.random.default_rng(0))
                else:  # the chain has drawn more than was handed out
                    run = self._run(said, stopping_criteria, sampling, drawn)
                break

    def _run(
        self,
        prompt: list[int],
        criteria: Any,
        sampling: dict[str, Any],
        drawn: Sequence[int] = (),
    ) -> Generation:
        """An answer behind `prompt`, to be driven; its chain has seen `drawn`."""
        self._mirostat_mu = ctypes.c_float(2.0 * sampling.get("mirostat_tau", 5.0))
        asked, grammar, scheduler = sampling.get("grammar"), None, self._parts.scheduler
        if asked is not None:
            state = Grammar(self._vocabulary, asked._grammar, asked._root)
            grammar = AnswerGrammar(state, self._choices)
        drafter = within(grammar, self._parts.drafter, scheduler)
        chain = Chain(self, grammar, **sampling)
        self._sampler = chain.sampler
        for token in drawn:
            chain.accept(token)
        verifier = ChainVerifier(self, chain, grammar, criteria, self._recorded)
        rng = np.random.default_rng(0)
        return Generation(self._cache, drafter, scheduler, verifier, Endless(), prompt, rng)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        draft_repo_id: str | None = None,
        draft_filename: str | None = None,
        **options: Any,
    ) -> DSparkLlama:
        """A target, and a draft or none, from a model hub, through huggingface_hub and its cache.

        Args:
            repo_id: of the target, such as ``org/name-GGUF``.
            filename: of the target, or a glob pattern that one file matches.
            additional_files: more of the target's repository, such as the shards of a split file.
            local_dir: where to put the files, instead of the cache.
            local_dir_use_symlinks: taken, as ``Llama`` takes it; huggingface_hub has given it up.
            cache_dir: where the cache is.
            draft_repo_id: of the draft; without it, the target's.
            draft_filename: of the draft, or a pattern; None: no draft model.
            options: as for the class.

        Raises:
            UsageError: no file or several match.

        """
        if draft_repo_id is not None and draft_filename is None:
            raise UsageError("draft_filename with draft_repo_id", "none", 'such as "*Q8_0.gguf"')
        places = {"local_dir": local_dir, "cache_dir": cache_dir}
        for name in additional_files or ():
            downloaded(repo_id, name, **places)
        path = downloaded(repo_id, filename, **places)
        if draft_filename is not None:
            options["draft_model"] = downloaded(draft_repo_id or repo_id, draft_filename, **places)
        return cls(path, **options)

    @cached_property
    def _choices(self) -> Choices:
        return new_choices(self._vocabulary)

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

            def __reduce__(self) -> tuple[Any, ...]:
                # Nobody can import this class; its parent takes the same settings.
                return _made, (cls, self.__getstate__())

        return WithDraft

    def __getstate__(self) -> dict[str, Any]:
        """What makes the same again, for pickling."""
        return {**super().__getstate__(), **self._asked}

    def close(self) -> None:
        """Keep what was learned, free both models."""
        if self._learned is not None:
            with suppress(OSError):  # a folder that cannot be written to is no reason to fail
                self._learned.save()
            self._learned = None
        if self._draft is not None:
            self._draft.close()
            if hasattr(self._draft, "model"):  # else: of a Llama that others made
                self._draft.model.close()
            self._draft = None
        if hasattr(self, "_stack"):  # else: refused before anything was loaded
            super().close()
            closed: Any = _Closed()
            self._model = self._ctx = self.tokenizer_ = self._cache = closed


class _Closed:
    """In the place of what was freed: llama.cpp ends the process that uses it."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError("a DSparkLlama that is open", "one that was closed", "make another")


def _made(kind: type[DSparkLlama], options: dict[str, Any]) -> DSparkLlama:
    return kind(**options)


def _told(options: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in options.items()}


def require_honoured(
    draft: DraftModel, options: DraftOptions | None, speculation: Speculation
) -> None:
    """Refuse what a `DSparkLlama` would have to ignore.

    Raises:
        UsageError: naming it.

    """
    if speculation.acceptance not in ("auto", "match"):
        raise UsageError(
            "acceptance match or auto: every token is llama.cpp's own draw",
            speculation.acceptance,
            "use dspark_gguf.Decoder for the other rules",
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
            kind = "none" if draft is None else type(draft).__name__
            raise UsageError(f"a draft_model that goes with {what}", kind, "leave one of both out")


def _own_drafter(draft: Any) -> Drafter:
    missing = [name for name in ("propose", "name", "is_free", "most") if not hasattr(draft, name)]
    if missing:
        raise UsageError(
            "draft_model: a path, a Llama, a Drafter or None", type(draft).__name__,
            f"give one of these (a Drafter has {missing[0]}: see dspark_gguf.draft.NoDrafter)",
        )  # fmt: skip
    return draft  # type: ignore[no-any-return]


def _stats(files: Sequence[DraftModel]) -> list[tuple[str, int, int]]:
    """What a file's name alone does not tell."""
    named = [file.model_path if isinstance(file, llama_cpp.Llama) else file for file in files]
    paths = [Path(file) for file in named if isinstance(file, str | Path)]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
