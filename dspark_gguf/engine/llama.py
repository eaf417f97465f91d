"""``llama_cpp.Llama`` without the ways in which it ends the process."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding as LlamaPromptLookupDecoding

from dspark_gguf.engine import trial
from dspark_gguf.engine.grammar import require_grammar
from dspark_gguf.errors import UsageError


class SafeLlama(Llama):  # type: ignore[misc]
    """A ``Llama`` that raises where ``Llama`` ends the process.

    It loads a model with extra buffers only where they work (``trial.py``), has room in its tables
    for as many tokens as its context (llama.cpp rounds that up), and checks grammars before
    llama.cpp reads them.

    Arguments are as for ``Llama``, which has none for extra buffers; it sets the attribute
    `model_params` once, before it loads the model. A contract test pins that.

    Raises:
        EngineError: this build of llama.cpp cannot run on this machine.

    """

    def __init__(
        self, model_path: str, *, extra_buffers: trial.Wish = "auto", **options: Any
    ) -> None:
        self._wish, self.extra_buffers = extra_buffers, trial.extra_buffers(extra_buffers)
        super().__init__(model_path, **options)

    @property
    def model_params(self) -> Any:
        """How the model was loaded."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        params.use_extra_bufts = self.extra_buffers
        self._model_params = params

    @property
    def input_ids(self) -> Any:
        """Ids of the tokens it has read, with room for `n_ctx()` of them."""
        return self._ids

    @input_ids.setter
    def input_ids(self, ids: Any) -> None:
        self._ids = np.pad(ids, (0, max(self._n_ctx - len(ids), 0)))

    @property
    def scores(self) -> Any:
        """The table of logits: of the whole context with `logits_all`."""
        return self._table

    @scores.setter
    def scores(self, table: Any) -> None:
        rows, width = table.shape
        more = self._logits_all and rows < self._n_ctx
        self._table = np.ndarray((self._n_ctx, width), table.dtype) if more else table

    def _init_sampler(self, *args: Any, **options: Any) -> Any:
        if options.get("grammar") is not None:
            require_grammar(self._model.vocab, options["grammar"])
        return super()._init_sampler(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        """The arguments that make the same again, for pickling."""
        return {**super().__getstate__(), "extra_buffers": self._wish}

    def close(self) -> None:
        """Free the model; using it later raises a `UsageError`."""
        if hasattr(self, "_stack"):  # else: refused before anything was loaded
            super().close()
            closed: Any = Closed()
            self._model = self._ctx = self.tokenizer_ = closed


class Closed:
    """Stands where something was freed: llama.cpp ends the process that uses that."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError("this Llama was closed", "Make another.")
