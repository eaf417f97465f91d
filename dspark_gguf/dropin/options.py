"""The names of what a `DSparkLlama` takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from difflib import get_close_matches

import llama_cpp

from dspark_gguf.errors import UsageError

_OURS = {"draft_model", "draft", "draft_options", "speculation", "extra_buffers"}
_OPTIONS = _OURS | set(inspect.signature(llama_cpp.Llama.__init__).parameters)
#: Names that are so alike are one name with a typo (``difflib``).
_TYPO = 0.85


def require_known(options: Iterable[str]) -> None:
    """Refuse names that are nearly those of options; frameworks pass on others that are none."""
    for name in options:
        close = get_close_matches(name, _OPTIONS, 1, _TYPO)
        if close and name not in _OPTIONS:
            raise UsageError(f"Llama has no option {name!r}", f"Write {close[0]}.")
