"""Whether a model can draft for another: same tokens and, if it needs one, the right target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dspark_gguf.engine.gguf import Header, read_tokens
from dspark_gguf.engine.heads import target_draft
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import PairError

#: llama.cpp's tolerance for padded vocabularies, and its first id that must agree: the few
#: special tokens before it may be named differently (common/speculative.cpp).
_MAX_SIZE_DIFFERENCE, _FIRST_COMPARED = 128, 5


def why_incompatible(target: Header, draft: Header) -> str:
    """Why `draft` cannot draft for `target`, from their headers; empty if it probably can.

    The rules are those of `require_same_tokens`, which decides once both are loaded.
    """
    if os.path.samefile(target.path, draft.path):
        return "it is the target"
    if draft.other_kind:
        return draft.other_kind
    special = target_draft(draft)
    if special is not None and (why := special.why_not_for(target)):
        return why
    return _difference(_of_header(target), _of_header(draft))


def require_same_tokens(
    target: Vocabulary, draft: Vocabulary, target_name: str, draft_name: str
) -> None:
    """Raise a `PairError` for a draft whose token ids do not mean the same as the target's.

    The rules are llama.cpp's: the same kind of tokenizer, the same rule for the first token, the
    same text for each id from 5 on, and at most 128 more ids on one side (padding).
    """
    if why := difference(target, draft):
        raise PairError(
            f"{draft_name} has another vocabulary than {target_name}: {why}",
            "Choose a draft of the target's own model family.",
        )


def difference(target: Vocabulary, draft: Vocabulary) -> str:
    """How the vocabularies differ; empty if ids mean the same."""
    return _difference(_of_vocabulary(target), _of_vocabulary(draft))


def require_text(target: Vocabulary, draft: Vocabulary, target_name: str, draft_name: str) -> None:
    """Raise a `PairError` for models whose tokens have no text to compare."""
    for vocabulary, name in ((target, target_name), (draft, draft_name)):
        if vocabulary.kind == "none":
            problem = f"{name} has no tokenizer, so {draft_name} cannot draft for {target_name}"
            raise PairError(problem, "Choose a draft of the target's own model family.")


class _Tokens(NamedTuple):
    kind: str
    n_vocab: int
    first: int | None  # token put before a text, if any
    texts: Callable[[], Iterable[bytes]]


def _of_vocabulary(vocabulary: Vocabulary) -> _Tokens:
    first = vocabulary.bos if vocabulary.adds_bos else None
    n_vocab = vocabulary.n_vocab
    return _Tokens(vocabulary.kind, n_vocab, first, lambda: map(vocabulary.text, range(n_vocab)))


def _of_header(header: Header) -> _Tokens:
    get = header.metadata.get
    kind = get("tokenizer.ggml.model", "none")
    adds_bos = get("tokenizer.ggml.add_bos_token", kind == "llama")
    first = get("tokenizer.ggml.bos_token_id") if adds_bos else None
    return _Tokens(kind, header.n_vocab, first, lambda: read_tokens(header.path))


def _difference(target: _Tokens, draft: _Tokens) -> str:
    if target.kind != draft.kind:
        return f"tokenizer {draft.kind}, not {target.kind}"
    if abs(target.n_vocab - draft.n_vocab) > _MAX_SIZE_DIFFERENCE:
        return f"{draft.n_vocab} tokens, not {target.n_vocab}"
    if target.first != draft.first:
        ids = ["none" if side.first is None else side.first for side in (draft, target)]
        return f"first token {ids[0]}, not {ids[1]}"
    pairs = zip(target.texts(), draft.texts(), strict=False)
    for token, (wanted, found) in enumerate(pairs):
        if token >= _FIRST_COMPARED and wanted != found:
            texts = [text.decode("utf-8", "replace") for text in (found, wanted)]
            return f"token {token} is {texts[0]!r}, not {texts[1]!r}"
    return ""
