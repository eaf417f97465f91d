"""Whether a model can draft for another one, from their headers: nothing is loaded."""

from __future__ import annotations

import os

from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.gguf import Header, read_tokens
from dspark_gguf.engine.vocabulary import FIRST_COMPARED, MAX_SIZE_DIFFERENCE
from dspark_gguf.errors import PairError


def misfit(target: Header, draft: Header) -> str:
    """Why `draft` cannot draft for `target`, in words; empty where nothing speaks against it.

    The rules are those of ``require_same_tokens``; loading both has the last word.
    """
    if os.path.samefile(target.path, draft.path):
        return "it is the target"
    if draft.other_kind:
        return draft.other_kind
    block = BlockDraft.of(draft)
    if block is not None:
        try:
            block.require_target(target)
        except PairError as error:
            return f"made for {error.needed}"
    return _other_tokens(target, draft)


def _other_tokens(target: Header, draft: Header) -> str:
    kinds = [each.metadata.get("tokenizer.ggml.model", "none") for each in (target, draft)]
    if kinds[0] != kinds[1]:
        return f"tokenizer {kinds[1]}, not {kinds[0]}"
    if abs(target.n_vocab - draft.n_vocab) > MAX_SIZE_DIFFERENCE:
        return f"{draft.n_vocab} tokens, not {target.n_vocab}"
    if _first_token(target) != _first_token(draft):
        return "another first token"
    pairs = zip(read_tokens(target.path), read_tokens(draft.path), strict=False)
    for token, (wanted, found) in enumerate(pairs):
        if token >= FIRST_COMPARED and wanted != found:
            return f"token {token} is {found.decode('utf-8', 'replace')!r}"
    return ""


def _first_token(header: Header) -> int | None:
    metadata = header.metadata
    usual = metadata.get("tokenizer.ggml.model") == "llama"
    adds = metadata.get("tokenizer.ggml.add_bos_token", usual)
    return metadata.get("tokenizer.ggml.bos_token_id") if adds else None
