"""Tokens and text of one model, and whether two models speak the same tokens."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any

import llama_cpp

from dspark_gguf.errors import EngineError, PairError

#: llama.cpp's tolerance for padded vocabularies, and its first id that must agree: the few
#: special tokens before it may be named differently (common/speculative.cpp).
MAX_SIZE_DIFFERENCE = 128
FIRST_COMPARED = 5

#: llama.cpp's ``llama_vocab_type``.
_KINDS = {0: "none", 1: "SPM", 2: "BPE", 3: "WPM", 4: "UGM", 5: "RWKV", 6: "PLAMO2"}
#: Those of them that put no token first, whatever the file says.
_NEVER_FIRST = (5, 6)


class Vocabulary:
    """The tokenizer of a loaded model.

    Args:
        model: llama.cpp's model.
        owner: whatever frees it; kept alive as long as its vocabulary is in use.

    """

    def __init__(self, model: Any, owner: object) -> None:
        self._owner = owner
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.kind: int = llama_cpp.llama_vocab_type(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.eos: int = llama_cpp.llama_vocab_eos(self._vocab)
        self.adds_bos: bool = (
            self.bos >= 0
            and self.kind not in _NEVER_FIRST
            and llama_cpp.llama_vocab_get_add_bos(self._vocab)
        )
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._fingerprint = ""
        self.pieces: Any = None  # sorted for grammars, by whom they are asked for
        self._end_tokens: tuple[int, ...] | None = None

    @property
    def pointer(self) -> Any:
        """llama.cpp's vocabulary."""
        return self._vocab

    def tokenize(self, text: str, *, special: bool = True, add_bos: bool = True) -> list[int]:
        """Ids of `text`.

        Args:
            text: any string.
            special: read ``<|im_start|>`` and the like as the tokens they name.
            add_bos: put the beginning-of-sequence token first where the model wants one.

        """
        data = text.encode("utf-8", "replace")
        # Not llama.cpp's `add_special`: by a flag in the file that also puts an end token last,
        # behind which a model answers something else.
        first = [self.bos] if add_bos and self.adds_bos else []
        room = len(data) + 8
        while True:
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), ids, room, False, special
            )
            if count >= 0:
                return [*first, *ids[:count]]
            if -count <= room:
                raise EngineError(
                    "text that this model can tokenize", repr(text[:40]), "use another model"
                )
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens are empty unless `special`."""
        known = self._pieces.get((token, special))
        if known is None:
            buffer = ctypes.create_string_buffer(256)
            size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 256, 0, special)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -size, 0, special)
            known = self._pieces[token, special] = buffer.raw[: max(size, 0)]
        return known

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        data = b"".join(self.piece(token, special=special) for token in tokens)
        return data.decode("utf-8", "replace")

    def text(self, token: int) -> bytes:
        """The token as the vocabulary spells it, special or not; empty for no token."""
        if not 0 <= token < self.n_vocab:
            return b""
        spelled: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return spelled

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens: equal where ids mean the same."""
        if not self._fingerprint:
            spelled = b"\0".join(self.text(token) for token in range(self.n_vocab))
            self._fingerprint = hashlib.sha256(spelled).hexdigest()[:32]
        return self._fingerprint

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer: end of sequence, end of turn and their kin."""
        if self._end_tokens is None:
            self._end_tokens = tuple(
                token
                for token in range(self.n_vocab)
                if llama_cpp.llama_vocab_is_eog(self._vocab, token)
            )
        return self._end_tokens


def require_same_tokens(
    target: Vocabulary, draft: Vocabulary, target_name: str, draft_name: str
) -> None:
    """Refuse a draft whose token ids mean something else than the target's.

    As llama.cpp: the same kind of tokenizer, the same rule for the first token, the same pieces
    from id 5 on, and at most 128 ids more on one side (padding).

    Raises:
        PairError: naming both models and the first difference.

    """

    def refuse(what: str, wanted: object, found: object) -> None:
        raise PairError(
            f"a draft with the vocabulary of {target_name} ({what} {wanted})",
            f"{draft_name} ({found})",
            "choose a draft of the target's own model family",
        )

    if target.kind != draft.kind:
        refuse("tokenizer", *(_KINDS.get(side.kind, side.kind) for side in (target, draft)))
    if abs(target.n_vocab - draft.n_vocab) > MAX_SIZE_DIFFERENCE:
        refuse("tokens:", target.n_vocab, draft.n_vocab)
    ours = target.bos if target.adds_bos else None
    theirs = draft.bos if draft.adds_bos else None
    if ours != theirs:
        refuse("first token", ours, theirs)
    for token in range(FIRST_COMPARED, min(target.n_vocab, draft.n_vocab)):
        wanted, found = target.text(token), draft.text(token)
        if wanted != found:
            shown = [piece.decode("utf-8", "replace") for piece in (wanted, found)]
            refuse(f"token {token} is", repr(shown[0]), repr(shown[1]))
