"""A grammar (GBNF) at one point of a text, through llama.cpp's own grammar sampler.

llama.cpp asks a grammar about every token of the vocabulary at every step, which takes longer than
a small model's pass (25 ms of 49,152 tokens inside a JSON string). Here it is asked about few: a
token can only fit if its first byte does, and 256 tokens tell which first bytes do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_grammar import json_schema_to_gbnf

from dspark_gguf.config import Sampling
from dspark_gguf.engine.gbnf import fault
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import text_or_file

Ids = npt.NDArray[np.int32]

_CANDIDATES = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)
#: First bytes, and tokens, up to which a choice counts as small.
_FEW_BYTES, _FEW_TOKENS = 4, 32


class Pieces:
    """The tokens of a vocabulary by their first byte.

    Args:
        piece: bytes of a token as a grammar reads them, special tokens spelled out.
        n_vocab: size of the vocabulary.
        end_tokens: tokens that end an answer.

    """

    def __init__(
        self, piece: Callable[[int], bytes], n_vocab: int, end_tokens: frozenset[int]
    ) -> None:
        self.end_tokens = end_tokens
        self.text = [piece(token) for token in range(n_vocab)]
        by_byte: list[list[int]] = [[] for _ in range(256)]
        for token, text in enumerate(self.text):
            if text and token not in end_tokens:
                by_byte[text[0]].append(token)
        #: Asked first: the token that is just this byte, or all with it where there is none.
        probes: list[int] = sorted(end_tokens)
        self.longer: list[Ids] = []
        for byte, tokens in enumerate(by_byte):
            alone = [token for token in tokens if self.text[token] == bytes([byte])]
            probes += alone or tokens
            rest = [token for token in tokens if token not in alone] if alone else []
            self.longer.append(np.array(rest, dtype=np.int32))
        self.probes = np.array(probes, dtype=np.int32)


def grammar_text(sampling: Sampling) -> str | None:
    """The grammar that the settings ask for, as GBNF; None: there is none.

    Raises:
        UsageError: no such file, or a schema that cannot be made a grammar.

    """
    if sampling.grammar is not None:
        return text_or_file(sampling.grammar, "::=", "grammar")
    if sampling.json_schema is None:
        return None
    schema = text_or_file(sampling.json_schema, "{", "json-schema")
    try:
        return str(json_schema_to_gbnf(schema))
    except Exception as error:
        # What the converter raises over a schema it does not know is no closed list.
        raise UsageError(
            "a JSON schema that can be made a grammar", str(error) or type(error).__name__,
            "simplify the schema, or give --grammar",
        ) from None  # fmt: skip


def pieces_of(vocabulary: Vocabulary) -> Pieces:
    """The tokens of a vocabulary as grammars read them, sorted once."""
    pieces: Pieces | None = vocabulary.pieces
    if pieces is None:
        spelled = partial(vocabulary.piece, special=True)
        pieces = Pieces(spelled, vocabulary.n_vocab, frozenset(vocabulary.end_tokens))
        vocabulary.pieces = pieces
    return pieces


class Grammar:
    """What may follow here.

    Args:
        vocabulary: of the model.
        text: GBNF.
        root: name of its first rule.
        sampler: of `fork`.

    Raises:
        UsageError: llama.cpp cannot use it.

    """

    def __init__(
        self, vocabulary: Vocabulary, text: str, root: str = "root", sampler: object = None
    ) -> None:
        self._arguments = (vocabulary, text, root)
        self._pieces = pieces_of(vocabulary)
        self._first: Ids | None = None
        self._few: Ids | None = None
        # A rule may name tokens instead of characters, in angle brackets.
        self._by_byte = "<" not in text
        self._sampler = sampler or new_sampler(vocabulary.pointer, text, root)

    def __del__(self) -> None:
        if getattr(self, "_sampler", None):
            llama_cpp.llama_sampler_free(self._sampler)
            self._sampler = None

    def fork(self) -> Grammar:
        """The same state, to try tokens on."""
        twin = Grammar(*self._arguments, sampler=llama_cpp.llama_sampler_clone(self._sampler))
        twin._first, twin._few = self._first, self._few
        return twin

    def accept(self, token: int) -> None:
        """Go on after `token`, which must fit (llama.cpp ends the process otherwise)."""
        llama_cpp.llama_sampler_accept(self._sampler, token)
        self._first = self._few = None

    def fits(self, token: int) -> bool:
        """Whether `token` may come next."""
        return len(self.among(np.array([token], dtype=np.int32))) == 1

    def among(self, ids: Ids) -> Ids:
        """Those of `ids` ``[n]`` that may come next, in their order."""
        array = candidates(ids, np.zeros(len(ids), dtype=np.float32))
        apply(self._sampler, array)
        found: Ids = array["id"][np.isfinite(array["logit"])]
        return found

    def all(self) -> Ids:
        """Every token that may come next."""
        first = self._probed()
        return np.concatenate([first, *map(self.among, self._longer(first))])

    def few(self) -> Ids:
        """Every token that may come next, or none where the choice is wide."""
        if self._few is None:
            narrow = len(self._probed()) <= _FEW_BYTES
            found = self.all() if narrow else np.empty(0, dtype=np.int32)
            self._few = found if len(found) <= _FEW_TOKENS else found[:0]
        return self._few

    def best(self, row: npt.NDArray[np.float32], count: int) -> Ids:
        """At least the `count` most probable tokens that may come next; 0: all of them.

        Args:
            row: logits ``[n_vocab]``.
            count: how many can be drawn.

        """
        if count == 1:
            best = self.among(np.array([row.argmax()], dtype=np.int32))
            if len(best):
                return best
        few = self.few()
        if len(few):
            return few
        first = 4 * max(count, 16)
        if count and first < len(row):
            top = np.argpartition(row, -first)[-first:].astype(np.int32)
            found = self.among(top)
            if len(found) >= count:
                return found
        return self.all()

    def _probed(self) -> Ids:
        if self._first is None:
            every = np.arange(len(self._pieces.text), dtype=np.int32)
            self._first = self.among(self._pieces.probes if self._by_byte else every)
        return self._first

    def _longer(self, first: Ids) -> list[Ids]:
        if not self._by_byte:
            return []
        text, ends = self._pieces.text, self._pieces.end_tokens
        starts = {text[token][0] for token in first.tolist() if token not in ends}
        # Where a byte has no token of its own, all of its tokens were probed.
        return [self._pieces.longer[byte] for byte in starts]


def require_grammar(vocab: object, grammar: llama_cpp.LlamaGrammar) -> None:
    """Refuse a grammar that llama.cpp cannot use: `Llama` ends the process with it.

    Raises:
        UsageError: saying what is wrong with it.

    """
    llama_cpp.llama_sampler_free(new_sampler(vocab, grammar._grammar, grammar._root))


def new_sampler(vocab: object, text: str, root: str) -> Any:
    """llama.cpp's sampler of a grammar, to be freed.

    Raises:
        UsageError: llama.cpp cannot use it.

    """
    wrong = fault(text, root)
    sampler = None
    if wrong is None:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), root.encode())
    if not sampler:
        raise UsageError(
            "a grammar that llama.cpp can use",
            wrong or "one that it cannot parse (stderr has its reason)",
            "mend the grammar; if a JSON schema made it, take classes such as \\d out of its "
            "patterns, and quotes out of const and enum",
        )
    return sampler


def candidates(ids: Ids, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
    """Tokens with their logits as llama.cpp's samplers take them ``[n]``."""
    array = np.zeros(len(ids), dtype=_CANDIDATES)
    array["id"], array["logit"] = ids, logits
    return array


def apply(sampler: object, array: npt.NDArray[np.void]) -> int:
    """Let a sampler change `array` in place; the token it selects, or -1: none that can follow."""
    data = array.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
    view = llama_cpp.llama_token_data_array(data=data, size=len(array), selected=-1, sorted=False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(view))
    chosen = view.data[view.selected] if view.selected >= 0 else None
    return int(chosen.id) if chosen is not None and chosen.logit > -np.inf else -1
