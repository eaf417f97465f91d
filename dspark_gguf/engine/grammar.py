"""A grammar (GBNF) at one point of a text, through llama.cpp's own grammar sampler.

llama.cpp checks every token of the vocabulary at every step, which takes longer than a small
model's pass (25 ms for 49,152 tokens inside a JSON string). Here it checks few: a token can only be
allowed if its first byte is, and 256 tokens show which first bytes are.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.config import Sampling
from dspark_gguf.engine.gbnf import fault
from dspark_gguf.engine.schema import schema_to_gbnf
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import text_or_file

Ids = npt.NDArray[np.int32]

_CANDIDATES = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)
#: Maximum first bytes, and tokens, of a narrow choice.
_FEW_BYTES, _FEW_TOKENS = 4, 32


def grammar_text(sampling: Sampling) -> str | None:
    """The grammar that the settings ask for, as GBNF, or None; a `UsageError` if it is invalid."""
    if sampling.grammar is not None:
        return text_or_file(sampling.grammar, "::=", "grammar")
    if sampling.json_schema is None:
        return None
    schema = text_or_file(sampling.json_schema, "{", "json-schema")
    try:
        return schema_to_gbnf(schema)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot make a grammar from the JSON schema: {error}",
            "Simplify the schema, or give --grammar.",
        ) from None


class Grammar:
    """The state of a GBNF grammar `text` whose first rule is `root`; raises like `new_sampler`."""

    def __init__(self, vocabulary: Vocabulary, text: str, root: str = "root") -> None:
        self._pieces = vocabulary.pieces
        self._owner = vocabulary  # keeps alive what the sampler points to
        self._first: Ids | None = None
        self._few: Ids | None = None
        # In angle brackets, a rule may name tokens instead of characters.
        self._by_byte = "<" not in text
        self._sampler = new_sampler(vocabulary.pointer, text, root)

    def __del__(self) -> None:
        if hasattr(self, "_sampler"):
            llama_cpp.llama_sampler_free(self._sampler)

    def fork(self) -> Grammar:
        """A copy, to try out tokens."""
        twin = object.__new__(Grammar)
        twin.__dict__ = {**self.__dict__, "_sampler": llama_cpp.llama_sampler_clone(self._sampler)}
        return twin

    def accept(self, token: int) -> None:
        """Continue after `token`, which must be allowed: otherwise llama.cpp ends the process."""
        llama_cpp.llama_sampler_accept(self._sampler, token)
        self._first = self._few = None

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        return len(self.among(np.array([token], dtype=np.int32))) == 1

    def among(self, ids: Ids) -> Ids:
        """The `ids` ``[n]`` that may come next, in the same order."""
        array = candidates(ids, np.zeros(len(ids), dtype=np.float32))
        apply(self._sampler, array)
        found: Ids = array["id"][np.isfinite(array["logit"])]
        return found

    def all(self) -> Ids:
        """Every token that may come next."""
        first = self._probed()
        if not self._by_byte:
            return first
        text, ends = self._pieces.text, self._pieces.end_tokens
        starts = {text[token][0] for token in first.tolist() if token not in ends}
        # If no token is this byte alone, all tokens that begin with it were probed.
        return np.concatenate([first, *(self.among(self._pieces.longer[byte]) for byte in starts)])

    def few(self) -> Ids:
        """Every token that may come next, or none if they are many."""
        if self._few is None:
            narrow = len(self._probed()) <= _FEW_BYTES
            found = self.all() if narrow else np.empty(0, dtype=np.int32)
            self._few = found if len(found) <= _FEW_TOKENS else found[:0]
        return self._few

    def best(self, row: npt.NDArray[np.float32], count: int) -> Ids:
        """At least the `count` most probable tokens that may come next; all if `count` is 0.

        `row` is the logits ``[n_vocab]``.
        """
        if count == 1:
            best = self.among(np.array([row.argmax()], dtype=np.int32))
            if len(best):
                return best
        if len(few := self.few()):
            return few
        first = 4 * max(count, 16)
        if count and first < len(row):
            found = self.among(np.argpartition(row, -first)[-first:].astype(np.int32))
            if len(found) >= count:
                return found
        return self.all()

    def _probed(self) -> Ids:
        if self._first is None:
            every = np.arange(len(self._pieces.text), dtype=np.int32)
            self._first = self.among(self._pieces.probes if self._by_byte else every)
        return self._first


def require_grammar(vocab: object, grammar: llama_cpp.LlamaGrammar) -> None:
    """Raise a `UsageError` for a grammar that would make `Llama` end the process."""
    llama_cpp.llama_sampler_free(new_sampler(vocab, grammar._grammar, grammar._root))


def new_sampler(vocab: object, text: str, root: str) -> Any:
    """llama.cpp's grammar sampler, to be freed by the caller; a `UsageError` if it is invalid."""
    wrong = fault(text, root)
    if wrong is None:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), root.encode())
        if sampler:
            return sampler
        wrong = "it cannot parse it (the reason is on stderr)"
    raise UsageError(
        f"llama.cpp cannot use the grammar: {wrong}",
        "Correct the grammar. If llama-cpp-python made it from a JSON schema, remove classes such "
        "as \\d from its patterns, and quotes from const and enum.",
    )


def candidates(ids: Ids, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
    """Tokens and their logits ``[n]``, as llama.cpp's samplers expect them."""
    array = np.zeros(len(ids), dtype=_CANDIDATES)
    array["id"], array["logit"] = ids, logits
    return array


def apply(sampler: object, array: npt.NDArray[np.void]) -> int:
    """Apply a sampler to `array` in place; returns the selected token, or -1 if none can follow."""
    data = array.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    view = llama_cpp.llama_token_data_array(data=data, size=len(array), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(view))
    chosen = view.data[view.selected] if view.selected >= 0 else None
    return int(chosen.id) if chosen is not None and chosen.logit > -np.inf else -1
