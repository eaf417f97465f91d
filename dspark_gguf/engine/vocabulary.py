"""Tokens and text of one model."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.errors import EngineError

#: llama.cpp's ``llama_vocab_type``.
_KINDS = {0: "none", 1: "SPM", 2: "BPE", 3: "WPM", 4: "UGM", 5: "RWKV", 6: "PLAMO2"}
#: Tokenizers that never put a token first, whatever the file says.
_NEVER_FIRST = ("RWKV", "PLAMO2")


class Vocabulary:
    """The tokenizer of llama.cpp's `model`; keeps the `owner` of the model alive."""

    def __init__(self, model: Any, owner: object) -> None:
        self._owner = owner
        self.pointer: Any = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.pointer)
        kind = llama_cpp.llama_vocab_type(self.pointer)
        self.kind: str = _KINDS.get(kind, str(kind))  # of the tokenizer
        self.bos: int = llama_cpp.llama_vocab_bos(self.pointer)
        self.eos: int = llama_cpp.llama_vocab_eos(self.pointer)
        found = llama_cpp.llama_vocab_eot(self.pointer)
        self.eot: int = self.eos if found < 0 else found  # ends a turn
        self.adds_bos: bool = (
            self.bos >= 0
            and self.kind not in _NEVER_FIRST
            and llama_cpp.llama_vocab_get_add_bos(self.pointer)
        )
        self._spelled: dict[tuple[int, bool], bytes] = {}

    def tokenize(self, text: str, *, special: bool = True, add_bos: bool = True) -> list[int]:
        """Ids of `text`.

        `special` parses ``<|im_start|>`` and the like as special tokens; `add_bos` adds the
        beginning-of-sequence token if the model expects one.
        """
        data = text.encode("utf-8", "replace")
        # Not llama.cpp's `add_special`: depending on a flag in the file, that also appends an end
        # token, after which a model answers something else.
        first = [self.bos] if add_bos and self.adds_bos else []
        room = len(data) + 8
        for _ in range(2):
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self.pointer, data, len(data), ids, room, False, special
            )
            if count >= 0:
                return [*first, *ids[:count]]
            room = -count
        raise EngineError(f"this model cannot tokenize {text[:40]!r}", "Use another model.")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens are empty unless `special`."""
        known = self._spelled.get((token, special))
        size = 256
        while known is None:
            buffer = ctypes.create_string_buffer(size)
            found = llama_cpp.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if found >= -size:
                known = self._spelled[token, special] = buffer.raw[: max(found, 0)]
            size = -found
        return known

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of `tokens`; invalid UTF-8 becomes U+FFFD."""
        data = b"".join(self.piece(token, special=special) for token in tokens)
        return data.decode("utf-8", "replace")

    def text(self, token: int) -> bytes:
        """The token as the vocabulary spells it, special or not; empty for an invalid id."""
        if not 0 <= token < self.n_vocab:
            return b""
        return bytes(llama_cpp.llama_vocab_get_text(self.pointer, token))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all tokens: equal if ids mean the same."""
        spelled = b"\0".join(map(self.text, range(self.n_vocab)))
        return hashlib.sha256(spelled).hexdigest()[:32]

    @cached_property
    def pieces(self) -> Pieces:
        """The tokens in the form that grammars need."""
        return Pieces(self)

    @cached_property
    def fill_in(self) -> tuple[int, int, int] | None:
        """Fill-in-the-middle ids: prefix, suffix, middle; None if the model has none."""
        ids = (
            llama_cpp.llama_vocab_fim_pre(self.pointer),
            llama_cpp.llama_vocab_fim_suf(self.pointer),
            llama_cpp.llama_vocab_fim_mid(self.pointer),
        )
        return None if min(ids) < 0 else ids

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer: end of sequence, end of turn and the like."""
        is_end = partial(llama_cpp.llama_vocab_is_eog, self.pointer)
        return tuple(token for token in range(self.n_vocab) if is_end(token))


class Pieces:
    """The tokens of a vocabulary by first byte, special ones spelled out, for grammars."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.end_tokens = frozenset(vocabulary.end_tokens)
        self.text = [vocabulary.piece(k, special=True) for k in range(vocabulary.n_vocab)]
        alone: list[list[int]] = [[] for _ in range(256)]
        longer: list[list[int]] = [[] for _ in range(256)]
        for token, text in enumerate(self.text):
            if text and token not in self.end_tokens:
                (longer if len(text) > 1 else alone)[text[0]].append(token)
        #: Checked first: end tokens, and for each byte the tokens that are only this byte, or all
        #: that begin with it if there are none.
        probes = sorted(self.end_tokens)
        #: The other tokens that begin with each byte.
        self.longer: list[npt.NDArray[np.int32]] = []
        for one, more in zip(alone, longer, strict=True):
            probes += one or more
            self.longer.append(np.array(more if one else [], dtype=np.int32))
        self.probes = np.array(probes, dtype=np.int32)
