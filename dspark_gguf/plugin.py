"""``llama_cpp.Llama``, sooner: its own answers, with drafts that are checked in one pass.

Every token is drawn by llama.cpp's own sampler chain from the target's own row, in order, as
``Llama.generate`` does it; a draft only decides how many rows one pass computes (`match`
acceptance). So penalties, grammars, mirostat, seeds and custom processors mean what they mean
there, and the same seed says the same.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Generator, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from dspark_gguf.catalog.resolve import located, resolve
from dspark_gguf.config import DraftOptions, Speculation
from dspark_gguf.draft import Drafter, NoDrafter
from dspark_gguf.engine import trial
from dspark_gguf.engine.grammar import require_grammar
from dspark_gguf.engine.llama import GrowingTokenizer, LlamaCache, RecordedRows, SafeLlama
from dspark_gguf.errors import ModelError, UsageError
from dspark_gguf.hub import downloaded
from dspark_gguf.llama_decoder import LlamaDecoder
from dspark_gguf.schedule import Fixed, StoppingRule
from dspark_gguf.speculator import DraftModel, Speculator, require_honoured

_GENERATE = inspect.signature(llama_cpp.Llama.generate)


class DSparkLlama(SafeLlama):
    """A ``Llama`` that speculates.

    Args:
        model_path: the target: a file, ``org/repo:quant`` on the hub, or a pair of ``models.txt``,
            which brings its draft.
        draft_model: a GGUF with the target's vocabulary, named likewise, a loaded ``Llama`` that
            nobody else uses meanwhile, a `Drafter`, or None: what the conversation already said is
            copied.
        draft_options: how a path is loaded.
        speculation: when to draft, and how much; acceptance is `match`.
        options: as for ``Llama``; ``extra_buffers`` (on, off) overrules what was tried here.

    Raises:
        UsageError: a `draft_model` that is none of these, or settings that do not go with it.
        PairError: a draft with another vocabulary.
        ModelError: a draft, or a target with a draft, that cannot take tokens back.
        EngineError: this build of llama.cpp cannot run on this machine.

    """

    n_tokens: int
    tokenizer_: Any
    _speculator: Speculator | None = None
    _recorded: RecordedRows | None = None
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
        # By a proxy: it is freed with the last reference to it, as a `Llama` is.
        self._cache = LlamaCache(weakref.proxy(self))
        if options.get("vocab_only") or options.get("embedding"):
            return
        facts = {
            "own": _told(super().__getstate__()), "draft": repr(draft_options),
            "extra_buffers": self.extra_buffers,
        }  # fmt: skip
        try:
            self._require_trimmable(draft_model)
            if self._cache.can_trim and self.speculation.mode != "off":
                self._speculator = Speculator(
                    self._cache, draft_model, draft_options, self.speculation, facts
                )
        except Exception:
            self.close()
            raise
        if self.verbose:
            lines = [f"DSparkLlama: {self.outlook}", *(f"note: {note}" for note in trial.notes())]
            print("\n".join(lines), file=sys.stderr)  # noqa: T201 - as Llama does

    def _require_trimmable(self, draft: DraftModel) -> None:
        if draft is not None and self.speculation.mode != "off" and not self._cache.can_trim:
            raise ModelError(
                "a target whose cache takes tokens back, for a draft_model",
                f"{os.path.basename(self.model_path)}, which is recurrent",
                "leave draft_model out: it then decodes plainly",
            )

    @property
    def outlook(self) -> str:
        """What speculation will do here, in one line."""
        if self._speculator is not None:
            return self._speculator.outlook
        if self.speculation.mode == "off":
            return "plain decoding, as asked"
        return "plain decoding: this model's cache cannot take tokens back"

    @property
    def drafter(self) -> Drafter:
        """What proposes."""
        return self._speculator.drafter if self._speculator else NoDrafter()

    @property
    def stopping_rule(self) -> StoppingRule:
        """What decides how much."""
        return self._speculator.stopping_rule if self._speculator else Fixed(0)

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

    def save_state(self) -> llama_cpp.LlamaState:
        """As of ``Llama``, whose table of logits it takes along: not the rows for logprobs."""
        recorded, self._recorded = self._recorded, None
        try:
            return super().save_state()
        finally:
            self._recorded = recorded

    def _init_sampler(self, *args: Any, **options: Any) -> Any:
        if options.get("grammar") is not None:
            require_grammar(self._model.vocab, options["grammar"])
        return super()._init_sampler(*args, **options)

    @wraps(llama_cpp.Llama.generate)
    def generate(  # noqa: D102 - as in Llama
        self, *args: Any, **options: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        asked = _GENERATE.bind(self, *args, **options).arguments
        return self._generated(list(asked.pop("tokens")), asked)

    def _generated(
        self, tokens: list[int], asked: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        del asked["self"]
        if not tokens and (asked.get("reset", True) or not self.n_tokens):
            raise UsageError("a prompt of a token at least", "none", "begin it with token_bos()")
        recording, self._records = self._records, False
        self._recorded = RecordedRows(self._n_vocab, len(tokens) - 1) if recording else None
        if self._speculator is None and not recording and asked.get("grammar") is None:
            yield from super().generate(tokens, **asked)
            return
        decoder = LlamaDecoder(self, self._cache, self._speculator, self._recorded)
        yield from decoder.generate(tokens, **asked)

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
        if self._speculator is not None:
            self._speculator.close()
            self._speculator = None
        if hasattr(self, "_stack"):  # else: refused before anything was loaded
            super().close()
            self._model = self._ctx = self.tokenizer_ = _Closed()


class _Closed:
    """In the place of what was freed: llama.cpp ends the process that uses it."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError("a DSparkLlama that is open", "one that was closed", "make another")


def _made(kind: type[DSparkLlama], options: dict[str, Any]) -> DSparkLlama:
    return kind(**options)


def _told(options: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in options.items()}
