"""A faster ``llama_cpp.Llama``: the same answers, with drafts that are checked in one pass.

llama.cpp's own sampler chain draws every token from the target's row, in order, as in
``Llama.generate``; a draft only decides how many rows one pass computes (`match` acceptance). So
penalties, grammars, mirostat, seeds and custom processors keep their meaning: same seed, same
answer.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Generator, Sequence
from functools import cached_property, partial, wraps
from operator import index
from threading import RLock
from typing import Any

import llama_cpp

from dspark_gguf.assemble import assemble, new_choices
from dspark_gguf.catalog.resolve import NO_DRAFT
from dspark_gguf.config import DraftOptions, Sampling, Speculation
from dspark_gguf.draft import Choices, Drafter, NoDrafter
from dspark_gguf.dropin import drafts
from dspark_gguf.dropin.answer import answer, in_turn
from dspark_gguf.dropin.llama_cache import borrow, sync_draft
from dspark_gguf.dropin.logprobs import LogprobsLlama
from dspark_gguf.dropin.tokenizer import GrowingTokenizer
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.closed import Closed
from dspark_gguf.engine.facts import llama_facts
from dspark_gguf.engine.measuring import PROFILE_SECONDS, measure
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import UsageError
from dspark_gguf.hub import download
from dspark_gguf.learned import Learned, learned_path
from dspark_gguf.schedule import Fixed, StoppingRule
from dspark_gguf.tally import Tally

_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class DSparkLlama(LogprobsLlama):
    """A ``Llama`` that speculates.

    Args:
        model_path: the target: a file, ``org/repo:quant`` on the hub, or a pair of ``models.txt``,
            which also names its draft.
        draft_model: a GGUF with the target's vocabulary or a draft made for the target, named in
            the same ways; ``mtp``, its own prediction heads; a loaded ``Llama`` that nobody else
            uses during an answer; a `Drafter`; ``none``, for prompt lookup alone; or None, to
            search for a draft as on the command line, and use prompt lookup if there is none.
        draft: another name for `draft_model`.
        draft_options: how to load the draft's file.
        speculation: when to draft, and how much; acceptance is `match`.
        options: as for ``Llama``; ``extra_buffers`` (on, off) overrules the trial on this machine.

    Raises:
        UsageError: another kind of `draft_model`, settings that do not go with it, or an option
            with a typo, which ``Llama`` would ignore.
        PairError: a draft with another vocabulary.
        ModelError: a draft that is not a model.
        EngineError: this build of llama.cpp cannot run on this machine.
    """

    n_tokens: int
    tokenizer_: Any
    _cache: Any  # a SequenceCache, or a Closed
    _learned: Learned | None = None
    _draft: SequenceCache | None = None
    _committed: Sequence[int] = ()

    def __init__(
        self,
        model_path: str,
        *,
        draft_model: drafts.DraftModel = None,
        draft: drafts.DraftModel = None,
        draft_options: DraftOptions | None = None,
        speculation: Speculation | None = None,
        **options: Any,
    ) -> None:
        self.speculation = Speculation.given(speculation)
        self._one_thread = RLock()
        #: Sums over all answers so far.
        self.tally = Tally()
        draft_model, searches = drafts.given_draft(draft_model, draft)
        drafts.require_known(options)
        drafts.require_supported(draft_model, draft_options, self.speculation)
        self._say = partial(print, file=sys.stderr) if options.get("verbose", True) else str
        searches &= not (options.get("vocab_only") or options.get("embedding"))
        searches &= self.speculation.mode != "off" and self.speculation.drafter != "lookup"
        target, draft_model, self._is_found = drafts.files_of(
            model_path, draft_model, searches, self._say
        )
        loading = drafts.target_options(target, draft_model) | options
        try:
            super().__init__(str(target), **loading)
        except ValueError:
            if not (self._is_found and loading["own_heads"]):
                raise
            draft_model = None  # its own heads give way
            super().__init__(str(target), **loading | {"own_heads": False})
        if type(self.tokenizer_) is llama_cpp.LlamaTokenizer:
            self.tokenizer_ = GrowingTokenizer(self)
        ours = {"draft_options": draft_options, "speculation": speculation}
        self._asked = {"draft_model": NO_DRAFT if draft_model is None else draft_model, **ours}
        #: Who proposes tokens, and who decides how many.
        self.drafter: Drafter = NoDrafter()
        self.stopping_rule: StoppingRule = Fixed(0)
        if options.get("vocab_only"):
            self._cache = Closed("vocab_only=True loaded no weights", "Leave it out.")
            return
        # By a proxy: the last reference to it frees it, as for a `Llama`.
        self._cache = borrow(weakref.proxy(self))
        self._vocabulary = Vocabulary(self._model.model, owner=self._model)
        if options.get("embedding"):
            return
        try:
            self._assemble(draft_model, draft_options)
        except Exception:
            self.close()
            raise
        if self.verbose:
            lines = [f"DSparkLlama: {self.summary}", *(f"note: {note}" for note in trial.notes())]
            print("\n".join(lines), file=sys.stderr)  # noqa: T201 - as Llama does

    def _assemble(self, draft: drafts.DraftModel, options: DraftOptions | None) -> None:
        own = drafts.own_drafter(draft)
        if self.speculation.mode != "off":
            target = self._cache, self._vocabulary, self.model_path, self._model.model
            if self._is_found:
                on_gpu = self.model_params.n_gpu_layers != 0
                self._draft = drafts.open_found(draft, on_gpu, self._say, target)
            else:
                self._draft = drafts.open_cache_of(draft, options or DraftOptions(), *target)
        # The draws of llama.cpp's own chain are accepted unlike ours, and take other times.
        facts = {
            "draws": "llama.cpp",
            "target": llama_facts(self),
            "draft": drafts.facts_of(draft, self._draft),
            "machine": library.machine(),
        }

        def learn() -> Learned:
            self._learned = Learned(learned_path(facts) if self.speculation.learn else None)
            parts = self._learned, self._cache, self._draft, self.speculation
            return measure(*parts, PROFILE_SECONDS, drafts.first_only(self._say))

        parts = assemble(
            self._cache,
            lambda: self._draft,
            self._vocabulary,
            # The draft's best guess is what llama.cpp's own draw follows most often.
            Sampling(temperature=0.0),
            self.speculation,
            learn,
            own,
        )
        self.drafter, self.stopping_rule = parts.drafter, parts.scheduler

    @property
    def summary(self) -> str:
        """How drafts are made here, in one line."""
        if self.speculation.mode == "off":
            return "plain decoding, as asked"
        rule = self.speculation.stopping_rule
        return f"drafts from {self.drafter.about}, as many as the rule {rule} allows; same output"

    def eval(self, tokens: Sequence[int]) -> None:  # noqa: D102 - as in Llama
        self._catch_up(whole=True)
        super().eval(tokens)

    def save_state(self) -> Any:  # noqa: D102 - as in Llama
        self._catch_up(whole=True)
        return super().save_state()

    def _catch_up(self, whole: bool = False) -> None:
        """Follow what other code did with the context since the last pass.

        With `whole`, read again the tokens that were lost with a rejected draft, because other code
        relies on `n_tokens`. Only needed after our own answers, with a memory that cannot take back
        single tokens.
        """
        cache = getattr(self, "_cache", None)
        if cache is None or (whole and (cache.rollback == "removal" or not self._committed)):
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
        return in_turn(self, self._generated(list(map(index, asked.pop("tokens"))), asked))

    def _generated(
        self, tokens: list[int], asked: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        if not tokens and (asked.get("reset", True) or not self.n_tokens):
            raise UsageError("the prompt has no tokens", "Begin it with token_bos().")
        self._begin_recording(len(tokens) - 1)
        plain = self.speculation.mode == "off" and asked.get("grammar") is None
        if plain and self._recorded is None:
            yield from super().generate(tokens, **asked)
            return
        self._catch_up()
        if self._draft is not None:
            sync_draft(self._draft)
        if not asked.pop("reset", True):
            tokens = [*self._input_ids.tolist(), *tokens]
        before = len(tokens)
        try:
            yield from answer(self, tokens, **asked)
        finally:
            self.stopping_rule.settle()
            if self._learned is not None:
                self._learned.after_answer(max(0, self.n_tokens - before))

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
        """A target from the hub, with or without a draft, through huggingface_hub's cache.

        Arguments are as for ``Llama.from_pretrained`` and for the class. The draft's file name may
        be a glob pattern too; its repository is the target's unless it is given.
        """
        if draft_repo_id is not None and draft_filename is None:
            raise UsageError("draft_repo_id needs a draft_filename", 'Give "*Q8_0.gguf", say.')
        places = {"local_dir": local_dir, "cache_dir": cache_dir}
        for name in additional_files or ():
            download(repo_id, name, **places)
        path = download(repo_id, filename, **places)
        if draft_filename is not None:
            options["draft_model"] = download(draft_repo_id or repo_id, draft_filename, **places)
        return cls(path, **options)

    @cached_property
    def _choices(self) -> Choices:
        return new_choices(self._vocabulary)

    @classmethod
    def with_draft(cls, draft_model: drafts.DraftModel = None, **ours: Any) -> type[DSparkLlama]:
        """A class that always drafts this way, for code that makes its own ``Llama``.

        `ours` may hold ``draft_options`` and ``speculation``.
        """
        fixed = {"draft_model": draft_model, **ours}

        class WithDraft(cls):  # type: ignore[misc, valid-type]
            def __init__(self, model_path: str, **options: Any) -> None:
                super().__init__(model_path, **{**options, **fixed})

            def __reduce__(self) -> tuple[Any, ...]:
                # This class cannot be imported; its parent takes the same settings.
                state: Any = self.__getstate__()
                return partial(cls, **state), ()

        return WithDraft

    def __getstate__(self) -> dict[str, Any]:
        """The arguments that make the same again, for pickling."""
        return {**super().__getstate__(), **self._asked}

    def close(self) -> None:
        """Save what was learned, and free both models."""
        if self._learned is not None:
            self._learned.save()
            self._learned = None
        if isinstance(self._draft, SequenceCache):  # else it was closed with its Llama
            self._draft.close()
            if hasattr(self._draft, "model"):  # else the caller's own Llama
                self._draft.model.close()
        self._draft = None
        super().close()
        self._cache = Closed("this Llama was closed", "Make another.")
