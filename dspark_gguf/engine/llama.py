"""``llama_cpp.Llama`` with errors where the original ends the process."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaDraftModel as LlamaDraftModel
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding as LlamaPromptLookupDecoding

from dspark_gguf.engine import trial
from dspark_gguf.engine.closed import Closed
from dspark_gguf.engine.grammar import require_grammar


class SafeLlama(Llama):  # type: ignore[misc]
    """A ``Llama`` that raises errors where ``Llama`` ends the process; it takes the same arguments.

    It uses extra buffers only where they work (``trial.py``), and loads prediction heads only with
    `own_heads`. Its arrays have room for the whole context, which llama.cpp rounds up. Grammars are
    checked before llama.cpp reads them. A LoRA that cannot be loaded is the RuntimeError that
    ``Llama`` means to raise. ``Llama`` sets the attribute `model_params` once, before it loads the
    model; a contract test pins that.
    """

    def __init__(
        self,
        model_path: str,
        *,
        extra_buffers: trial.Wish = "auto",
        own_heads: bool = False,
        **options: Any,
    ) -> None:
        self._own_heads = own_heads
        self._wish, self.extra_buffers = extra_buffers, trial.extra_buffers(extra_buffers)
        super().__init__(model_path, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        """Change the parameters and arrays that `Llama` makes; a null pointer is a missing LoRA."""
        if name == "model_params":
            value.use_extra_bufts = self.extra_buffers
            value.load_mtp = self._own_heads
        elif name == "input_ids":
            value = np.pad(value, (0, max(self._n_ctx - len(value), 0)))
        elif name == "scores" and self._logits_all and len(value) < self._n_ctx:
            value = np.ndarray((self._n_ctx, value.shape[1]), value.dtype)
        elif name == "_lora_adapter" and not value:
            value = None  # which `Llama` refuses
        super().__setattr__(name, value)

    def _init_sampler(self, *args: Any, **options: Any) -> Any:
        if options.get("grammar") is not None:
            require_grammar(self._model.vocab, options["grammar"])
        return super()._init_sampler(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments, for pickling."""
        return {**super().__getstate__(), "extra_buffers": self._wish}

    def close(self) -> None:
        """Free the model; using it later raises a `UsageError`."""
        if hasattr(self, "_stack"):  # else: refused before anything was loaded
            super().close()
            closed: Any = Closed("this Llama was closed", "Make another.")
            self._model = self._ctx = self.tokenizer_ = closed
